//! Telling: sealed datagrams to random members, and what comes in.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use mosix_policy::{Message, NodeId, pick_peer};
use mosix_wire::gossip::{Opener, Sealer};
use tokio::net::UdpSocket;

use crate::node::Node;

/// Larger datagrams are cut by the read, and then refused by the seal.
const MAX_DATAGRAM_BYTES: usize = 2048;

/// Opens the socket; the loops are started by the caller.
pub(crate) async fn bind(node: &Node) -> Result<UdpSocket> {
    let address = node.identity.members().by_id(node.id().0).context("this node is no member")?.address;
    UdpSocket::bind(address).await.with_context(|| format!("cannot bind the gossip socket to {address}"))
}

/// Sends one message a period to a random member.
pub(crate) async fn send(node: Rc<Node>, socket: Rc<UdpSocket>) -> Result<()> {
    let mut sealer = Sealer::new(node.identity.gossip_key(), node.id().0)?;
    let members: Vec<NodeId> = node.identity.members().iter().map(|member| NodeId(member.id)).collect();
    loop {
        let pause = node.params.next_tick_s(&mut *node.rng.borrow_mut());
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        let peer = pick_peer(&members, node.id(), &mut *node.rng.borrow_mut());
        if let Some(peer) = peer {
            tell(&node, &socket, &mut sealer, peer).await;
        }
        // A node without work asks for some: it tells the most loaded ones that it is idle.
        if node.figures().committed == 0 {
            let hint = node.window.borrow().hint_targets(&node.params, node.now_s(), 1);
            for busy in hint {
                tell(&node, &socket, &mut sealer, busy).await;
            }
        }
    }
}

async fn tell(node: &Node, socket: &UdpSocket, sealer: &mut Sealer, peer: NodeId) {
    let Some(address) = node.identity.members().by_id(peer.0).map(|member| member.address) else { return };
    let message = {
        let record = node.record();
        node.window.borrow_mut().compose(&node.params, record, node.now_s(), &mut *node.rng.borrow_mut())
    };
    let sealed = postcard::to_stdvec(&message).ok().and_then(|bytes| sealer.seal(&bytes).ok());
    let Some(datagram) = sealed else { return tracing::error!("a gossip message did not fit") };
    match socket.send_to(&datagram, address).await {
        Ok(_) => node.stats.borrow_mut().gossip_sent += 1,
        // Not there at present: silence is what others see of it, too.
        Err(error) => tracing::debug!(%address, "gossip: {error}"),
    }
}

/// Takes in what others tell.
pub(crate) async fn receive(node: Rc<Node>, socket: Rc<UdpSocket>) -> Result<()> {
    let others = node.identity.members().iter().map(|member| member.id).filter(|id| *id != node.id().0);
    let mut opener = Opener::new(node.identity.gossip_key(), others)?;
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let length = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => length,
            Err(error) => {
                tracing::debug!("gossip: {error}");
                continue;
            }
        };
        let opened = opener.open(buffer.get(..length).unwrap_or_default()).ok();
        let message = opened.and_then(|(_, payload)| postcard::from_bytes::<Message>(&payload).ok());
        let Some(message) = message else {
            node.stats.borrow_mut().gossip_dropped += 1;
            continue;
        };
        node.stats.borrow_mut().gossip_received += 1;
        let news = node.window.borrow_mut().merge(&node.params, message, node.now_s());
        if news > 0 {
            node.news.notify_one();
        }
    }
}
