//! How a body travels: its memory while it still runs, then what is left, then CRIU's images.
//!
//! One TLS connection a move, from the node that holds the body to the one that shall have it, used by one blocking thread at each end:
//!
//! ```text
//! send                                    receive
//!   Opening::Body, Form       ------->      (event loop), then the thread
//!   pages (mosix_pages::wire) ------->      into windows of the waiting CRIU, or the store
//!      ... rounds while it runs ... the last one while it stands still
//!   File, its bytes; ...      ------->      into the image folder
//!   End                       ------->      checks that everything has arrived; only now CRIU may go on
//! ```
//!
//! [`send`] also has the process dumped in between, by whoever runs CRIU there ([`send::Dumper`]): home's daemon itself, or at a hop the
//! agent. Without pages (one of the two CRIUs is not patched) the images hold the memory, and all of it is sent in the blackout.

pub(crate) mod files;
pub(crate) mod follow;
pub(crate) mod receive;
pub(crate) mod send;

use std::time::Duration;

use anyhow::Result;
use mosix_engine::commit::Stamp;
use mosix_wire::frame;
use mosix_wire::tls::{Stream, Tls};
use serde::{Deserialize, Serialize};

use crate::protocol::Opening;

/// Connects to the node that shall have the body; done before anything else, so that the handshake is not in the blackout.
pub(crate) async fn open(tls: &Tls, target: &str, stamp: Stamp, timeout: Duration) -> Result<Stream> {
    let mut stream = tls.connect(target, timeout).await?;
    frame::write_frame(&mut stream, &Opening::Body { stamp }).await?;
    Ok(stream)
}

/// First message on the connection, after its opening.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Form {
    /// A page stream follows, and CRIU's images are without the contents of memory.
    pub(crate) pages: bool,
}

/// Where CRIU finds the pages that are in no window, beside the image folder.
pub(crate) const STORE_DIR: &str = "store";
/// CRIU's name for the folder that an image folder refers to.
pub(crate) const PARENT_LINK: &str = "parent";
