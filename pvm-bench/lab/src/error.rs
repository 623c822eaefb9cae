//! What can go wrong in the lab, in words a user can act on.

use std::io;
use std::path::PathBuf;

/// Result of the lab's operations.
pub type Result<T> = std::result::Result<T, LabError>;

/// Errors of the lab. Unless a variant says otherwise, nothing was left behind: a failed `up` takes down what it had made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call or a file operation failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The lab asked for is impossible. Nothing was done.
    #[error("this lab cannot be made: {0}")]
    Spec(String),
    /// Not root. Nothing was done.
    #[error("a lab needs root (namespaces and cgroups); run it as root")]
    NeedRoot,
    /// The machine has no usable CPU controller. Nothing was done.
    #[error("no cpu cgroup controller found: {0}")]
    NoCpuController(String),
    /// Another lab with that id runs. It was not touched.
    #[error("lab `{id}` is already up ({why}); take it down first (`mosix-lab down`) or use another --id")]
    Busy {
        /// The lab's id.
        id: String,
        /// What was found.
        why: String,
    },
    /// There is no such lab.
    #[error("no lab in {0}: start one with `mosix-lab up`")]
    NotUp(PathBuf),
    /// There is no such node.
    #[error("no node named `{name}` in this lab; it has {first} to {last}")]
    NoSuchNode {
        /// What was asked for.
        name: String,
        /// First node.
        first: String,
        /// Last node.
        last: String,
    },
    /// A tool that the lab calls failed.
    #[error("{what} failed: {output}")]
    Tool {
        /// The tool and its purpose.
        what: String,
        /// What it printed, or its status.
        output: String,
    },
    /// The node's holder refused or could not do a request. Nothing was started.
    #[error("node {node} refused to run the command: {why}")]
    Refused {
        /// The node.
        node: String,
        /// Why.
        why: String,
    },
    /// The node went away while a command ran on it; what ran there is dead.
    #[error("node {0} went away (the lab was taken down, or its holder was killed)")]
    NodeGone(String),
    /// Something remained after `down`. The text names it.
    #[error("could not remove everything: {0}")]
    Remains(String),
    /// Bytes that are not of the lab's protocol.
    #[error("bad message on the lab's socket: {0}")]
    Protocol(String),
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// Turns an I/O error (or anything that becomes one) into a [`LabError`] that names the action.
pub(crate) fn failed<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> LabError {
    let action = action.into();
    move |source| LabError::Io { action, source: source.into() }
}
