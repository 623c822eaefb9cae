//! `mosixctl cluster`: the folder of keys and members, see [`mosix_wire::cluster`]. Needs no daemon.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use mosix_wire::cluster;
use serde_json::json;

use crate::output::Output;

/// What to do with the folder.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new cluster: its authority, its gossip key, no members yet
    Init {
        /// Folder for it; keep it secret, it is needed only to add nodes
        dir: PathBuf,
    },
    /// Add a node and make its certificate; all nodes then need a new bundle
    Add {
        /// The cluster's folder
        dir: PathBuf,
        /// Name of the node: small letters, digits, `-`
        name: String,
        /// Where its daemon listens, `ip:port`
        address: String,
    },
    /// Copy what one node needs to a folder of its own, which goes to that node
    Bundle {
        /// The cluster's folder
        dir: PathBuf,
        /// Name of the node
        name: String,
        /// Folder for its files
        out: PathBuf,
    },
}

/// Does it and says so.
pub(crate) fn execute(command: &Command, output: Output) -> Result<()> {
    match command {
        Command::Init { dir } => {
            cluster::init(dir)?;
            output.print(&json!({ "dir": dir }), || {
                format!("made a cluster in {0}; add its nodes with: mosixctl cluster add {0} NAME IP:PORT\n", dir.display())
            })
        }
        Command::Add { dir, name, address } => {
            let member = cluster::add(dir, name, address)?;
            output.print(&member, || format!("{} at {} is node {} of the cluster\n", member.name, member.address, member.id))
        }
        Command::Bundle { dir, name, out } => {
            cluster::bundle(dir, name, out)?;
            output.print(&json!({ "name": name, "out": out }), || {
                format!("{} holds all that {name} needs: bring it there, and let nobody else read it\n", out.display())
            })
        }
    }
}
