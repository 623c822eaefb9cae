//! Reading and writing CRIU's image files.
//!
//! An image is one or two magic numbers and then records, each a 32-bit length and a protobuf message (`images/*.proto` of CRIU 4.2.1). [`mod@file`]
//! is that frame, [`messages`] the messages: complete for the images that we write ([`messages::Pagemap`], inventory, mm, timens, pstree),
//! and in part for those that we only look into. On top of it: [`pagemap`] reads and writes page maps and merges our own list of pages into CRIU's,
//! [`parent`] writes the parent folder of a skeleton, [`verify`] tells the destination what came of its regions.

pub mod file;
pub mod messages;
pub mod pagemap;
pub mod parent;
pub mod verify;

use std::path::PathBuf;

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// From the file system.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// From the system.
        source: std::io::Error,
    },
    /// The content is not what it should be.
    #[error("{path}: {what}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Page size of all machines that CRIU's x86-64 images come from.
pub const PAGE_BYTES: u64 = 4096;
