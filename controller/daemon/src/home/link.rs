//! The link from home to the node that holds, or shall hold, a group: one TLS stream for each epoch.

use anyhow::Result;
use mosix_engine::commit::Stamp;
use mosix_wire::frame;
use mosix_wire::tls::Stream;
use std::rc::Rc;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::deputy::Event;
use crate::node::Node;
use crate::protocol::{FromHolder, Lease, MAX_MESSAGE_BYTES, Offer, Opening, ToHolder};

/// Messages that may wait for the network.
const QUEUE: usize = 512;

/// What a link reports.
#[derive(Debug)]
pub(crate) enum LinkNews {
    Message(FromHolder),
    Lost { why: String },
}

/// The sending side; the stream closes when it is dropped.
pub(crate) struct Link {
    pub(crate) epoch: u32,
    messages: mpsc::Sender<ToHolder>,
}

impl Link {
    /// Connects in the background and sends the offer; all news goes to `events`.
    pub(crate) fn open(node: &Rc<Node>, target: String, offer: Offer, events: mpsc::Sender<Event>) -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        let (stamp, lease) = (offer.stamp, offer.lease);
        let node = node.clone();
        tokio::task::spawn_local(async move {
            let why = match connect(&node, &target, offer).await {
                Ok(stream) => relay(stream, stamp, lease, queue, &events).await,
                Err(error) => format!("{error:#}"),
            };
            let _ = events.send(Event::Link(stamp, LinkNews::Lost { why })).await;
        });
        Self { epoch: stamp.epoch, messages }
    }

    /// For a task that outlives this borrow.
    pub(crate) fn sender(&self) -> mpsc::Sender<ToHolder> {
        self.messages.clone()
    }

    pub(crate) async fn send(&self, message: ToHolder) {
        // A lost link reports itself.
        let _ = self.messages.send(message).await;
    }
}

async fn connect(node: &Node, target: &str, offer: Offer) -> Result<Stream> {
    let mut stream = node.tls.connect(target, node.config.connect_timeout()).await?;
    frame::write_frame(&mut stream, &Opening::Offer(Box::new(offer))).await?;
    Ok(stream)
}

async fn relay(stream: Stream, stamp: Stamp, lease: Lease, queue: mpsc::Receiver<ToHolder>, events: &mpsc::Sender<Event>) -> String {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        why = read(reader, stamp, lease, events) => why,
        why = write(writer, lease, queue) => why,
    }
}

async fn read(mut reader: ReadHalf<Stream>, stamp: Stamp, lease: Lease, events: &mpsc::Sender<Event>) -> String {
    loop {
        let Ok(result) = tokio::time::timeout(lease.home(), frame::read_frame(&mut reader, MAX_MESSAGE_BYTES)).await else {
            return format!("silent for {} ms", lease.home().as_millis());
        };
        match result {
            Ok(FromHolder::Beat) => {}
            Ok(message) => {
                if events.send(Event::Link(stamp, LinkNews::Message(message))).await.is_err() {
                    return "the deputy has ended".into();
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}

async fn write(mut writer: WriteHalf<Stream>, lease: Lease, mut queue: mpsc::Receiver<ToHolder>) -> String {
    loop {
        let message = match tokio::time::timeout(lease.beat(), queue.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => ToHolder::Beat,
        };
        if let Err(error) = frame::write_frame(&mut writer, &message).await {
            return error.to_string();
        }
    }
    let _ = writer.shutdown().await;
    "closed".into()
}
