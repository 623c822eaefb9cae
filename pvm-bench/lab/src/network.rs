//! The lab's Ethernet: one bridge in a namespace of its own, one cable per node.
//!
//! `ip -batch` does it in one process per namespace. The cables are made by a process that is in the switch's network
//! namespace but in the caller's pid namespace, because the far ends are handed over by pid.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use crate::client::Exec;
use crate::error::{LabError, Result, failed};
use crate::state::{Node, SWITCH, State};

/// Bits of the network in the nodes' addresses.
const PREFIX: u8 = 16;

/// Connects all nodes of a lab whose holders run.
pub(crate) fn connect(state: &State) -> Result<()> {
    let switch_pid = holder_pid(&state.switch)?;
    let mut batch = String::from("link set lo up\nlink add br0 type bridge\nlink set br0 up\n");
    for node in &state.nodes {
        let (port, pid) = (node.index + 1, holder_pid(node)?);
        let _ = writeln!(batch, "link add p{port} type veth peer name eth0 netns {pid}");
        let _ = writeln!(batch, "link set p{port} master br0 up");
    }
    let file = state.dir.join("switch.batch");
    std::fs::write(&file, batch).map_err(failed(format!("writing {}", file.display())))?;
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{switch_pid}/ns/net"))
        .args(["ip", "-batch"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .map_err(failed("running nsenter (package util-linux)"))?;
    if !output.status.success() {
        return Err(tool(&state.switch, String::from_utf8_lossy(&output.stderr).trim()));
    }
    plug_in_all(state)
}

/// Plugs a node's cable in or out, at the bridge's end: the node keeps its address, and what it sends gets nowhere.
pub(crate) fn set_link(state: &State, node: &Node, up: bool) -> Result<()> {
    let (switch_pid, port) = (holder_pid(&state.switch)?, format!("p{}", node.index + 1));
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{switch_pid}/ns/net"))
        .args(["ip", "link", "set", &port, if up { "up" } else { "down" }])
        .stdin(Stdio::null())
        .output()
        .map_err(failed("running nsenter (package util-linux)"))?;
    if output.status.success() { Ok(()) } else { Err(tool(&state.switch, String::from_utf8_lossy(&output.stderr).trim())) }
}

/// Gives every node its address, all at the same time.
fn plug_in_all(state: &State) -> Result<()> {
    let mut running = Vec::new();
    for node in &state.nodes {
        let file = node.dir.join("ip.batch");
        let batch = format!("addr add {}/{PREFIX} dev eth0\nlink set lo up\nlink set eth0 up\n", node.ip);
        std::fs::write(&file, batch).map_err(failed(format!("writing {}", file.display())))?;
        let log = crate::client::append_to(&state.dir.join("holders.log"))?;
        let exec = Exec::new(["ip".into(), "-batch".into(), file.into_os_string()]).throttled(false).stderr(log);
        running.push((node, node.spawn(exec)?));
    }
    for (node, mut child) in running {
        let status = child.wait()?;
        if !status.success() {
            let log = std::fs::read_to_string(state.dir.join("holders.log")).unwrap_or_default();
            return Err(tool(node, &format!("{status} {}", log.trim())));
        }
    }
    Ok(())
}

fn tool(node: &Node, output: &str) -> LabError {
    let what = if node.name == SWITCH { "setting up the bridge with `ip`" } else { "setting an address with `ip`" };
    LabError::Tool { what: format!("{what} in {} (package iproute2)", node.name), output: output.into() }
}

fn holder_pid(node: &Node) -> Result<i32> {
    node.holder.map(|holder| holder.pid).ok_or_else(|| LabError::NodeGone(node.name.clone()))
}
