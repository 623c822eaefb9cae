//! What can go wrong while measuring.

use crate::btf::BtfError;
use std::io;
use thiserror::Error;

/// Why a probe could not be opened or a sample not be taken. After a failed sample the probe stays usable, but
/// forgets what it knew: the next sample is a first one again.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// A file of the kernel could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the kernel has a content that this program does not understand.
    #[error("{path} has an unexpected content: {what}")]
    Content {
        /// Path of the file.
        path: String,
        /// What was missing or wrong.
        what: String,
    },
    /// `/proc` shows another pid namespace than the one this process lives in.
    #[error("the /proc mounted here belongs to another pid namespace: mount one of this namespace (mount -t proc proc /proc)")]
    ForeignProc,
    /// The kernel's type information lacks something.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The BPF program was refused.
    #[error("the kernel refused the BPF program while {step}: {why}")]
    Bpf {
        /// What was being done.
        step: &'static str,
        /// What the kernel or the loader said, one line.
        why: String,
    },
    /// The BPF program was accepted, but what it tells of this very process is not true.
    #[error("the BPF program misreads this kernel: {0}")]
    Implausible(String),
}

impl ProbeError {
    pub(crate) fn read(path: &str, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn content(path: &str, what: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn bpf(step: &'static str, error: &dyn std::error::Error) -> Self {
        let mut why = first_line(&error.to_string());
        let mut cause = error.source();
        while let Some(error) = cause {
            let line = first_line(&error.to_string());
            if !why.contains(&line) {
                why = format!("{why}: {line}");
            }
            cause = error.source();
        }
        Self::Bpf { step, why }
    }
}

/// Verifier logs can have thousands of lines.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
