//! The host's side: processes of other homes (and own ones that came back) that this node holds, shall hold, or gives away.
//!
//! [`serve`] accepts streams; for each offer one guest task ([`guest::run`]) drives the destination's part of the commit protocol, keeps the
//! agent, and at a hop is the source ([`hop`]).

mod guest;
mod hop;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mosix_engine::commit::Stamp;
use mosix_wire::frame;
use mosix_wire::tls::{PeerName, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::node::Node;
use crate::protocol::{MAX_MESSAGE_BYTES, Opening};
pub(crate) use guest::Event;
pub(crate) use hop::drop_later;

/// Handshakes under way at a time.
const MAX_HANDSHAKES: usize = 64;
/// Guests that a node holds at most, whatever its policy says.
const MAX_GUESTS: usize = 4096;
/// After an error of accept(2), e.g. out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is known of a guest.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub(crate) home: String,
    /// Pid in this node's namespace, once it runs.
    pub(crate) outer_pid: Option<i32>,
    pub(crate) since: Instant,
    /// Work it had done when it came.
    pub(crate) work_before_s: f64,
    pub(crate) age_before_s: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) running: bool,
}

/// Handle of a guest task.
pub(crate) struct Guest {
    pub(crate) stamp: Stamp,
    /// Node that may send its images.
    pub(crate) source: String,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) info: Rc<RefCell<Info>>,
}

impl Guest {
    /// It runs here for another home.
    pub(crate) fn is_foreign(&self, node: &Node) -> bool {
        let info = self.info.borrow();
        info.running && info.home != node.identity.name()
    }
}

/// Accepts streams from members until the daemon ends.
pub(crate) async fn serve(node: Rc<Node>, listener: TcpListener) {
    let handshakes = std::sync::Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((tcp, from)) => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    let opened = open(&node, tcp).await;
                    drop(permit);
                    let result = match opened {
                        Ok((stream, peer, opening)) => dispatch(&node, stream, peer, opening).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = result {
                        tracing::warn!(%from, "{error:#}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn open(node: &Node, tcp: TcpStream) -> Result<(Stream, PeerName, Opening)> {
    let limit = node.config.connect_timeout();
    let (mut stream, peer) = node.tls.accept(tcp, limit).await?;
    let opening = tokio::time::timeout(limit, frame::read_frame(&mut stream, MAX_MESSAGE_BYTES)).await.context("no opening in time")??;
    Ok((stream, peer, opening))
}

async fn dispatch(node: &Rc<Node>, stream: Stream, peer: PeerName, opening: Opening) -> Result<()> {
    match opening {
        Opening::Offer(offer) => {
            if offer.request.home.0 != peer.id {
                bail!("{} offers a process of another home", peer.name);
            }
            if node.guests.borrow().len() >= MAX_GUESTS {
                bail!("{MAX_GUESTS} guests are here already");
            }
            guest::run(node.clone(), stream, peer.name, *offer).await;
            Ok(())
        }
        Opening::Body { stamp } => {
            let events = {
                let guests = node.guests.borrow();
                let guest =
                    guests.get(&stamp.group).filter(|guest| guest.stamp == stamp).context("the body of a process that was not offered")?;
                if guest.source != peer.name {
                    bail!("{} sends a body that {} should send", peer.name, guest.source);
                }
                guest.events.clone()
            };
            let _ = events.send(Event::BodyStream(Box::new(stream))).await;
            Ok(())
        }
    }
}
