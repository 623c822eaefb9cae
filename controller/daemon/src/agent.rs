//! A running `mosix-agent`: started here, spoken to over its socket.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use mosix_guest::{FromAgent, Setup, ToAgent, checked_length, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

/// Orders that may wait for a busy agent. Data is bounded by credits, all else is rare.
const QUEUE: usize = 256;

/// The sending side. When it is dropped the socket closes, and the agent ends with all that it holds.
#[derive(Debug)]
pub(crate) struct Agent {
    orders: mpsc::Sender<ToAgent>,
    waiting: JoinHandle<()>,
}

impl Agent {
    /// Starts an agent. Its messages go to `on_news`, `None` at the end.
    pub(crate) fn start<F>(program: &Path, setup: Setup, on_news: F) -> Result<Self>
    where
        F: AsyncFn(Option<FromAgent>) + 'static,
    {
        let (ours, theirs) = StdUnixStream::pair().context("cannot make a socket pair")?;
        let mut child = std::process::Command::new(program)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        // A thread and not tokio's child handling: the watcher's rule forbids waiting for just any child.
        let waiting = std::thread::spawn(move || drop(child.wait()));
        ours.set_nonblocking(true)?;
        let (reader, mut writer) = UnixStream::from_std(ours)?.into_split();
        let (orders, mut queue) = mpsc::channel(QUEUE);
        tokio::task::spawn_local(async move {
            while let Some(order) = queue.recv().await {
                let Ok(bytes) = encode(&order) else { continue };
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        tokio::task::spawn_local(listen(reader, on_news));
        let agent = Self { orders, waiting };
        agent.orders.try_send(ToAgent::Setup(Box::new(setup))).context("the agent's queue is full")?;
        Ok(agent)
    }

    /// Tells it to end. The handle can be joined (on a thread that may block): then its namespaces are empty, and CRIU writes no more files.
    pub(crate) fn end(self) -> JoinHandle<()> {
        self.waiting
    }

    /// To give it orders from a thread that blocks. It does not end before these are dropped, too.
    pub(crate) fn sender(&self) -> mpsc::Sender<ToAgent> {
        self.orders.clone()
    }

    /// Queues an order. An agent that has ended is noticed by its news.
    pub(crate) async fn tell(&self, order: ToAgent) {
        let _ = self.orders.send(order).await;
    }
}

async fn listen<F>(mut reader: OwnedReadHalf, on_news: F)
where
    F: AsyncFn(Option<FromAgent>),
{
    loop {
        match receive(&mut reader).await {
            Ok(news) => on_news(Some(news)).await,
            Err(_) => return on_news(None).await,
        }
    }
}

async fn receive(reader: &mut OwnedReadHalf) -> Result<FromAgent> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let mut bytes = vec![0; checked_length(length)?];
    reader.read_exact(&mut bytes).await?;
    Ok(postcard::from_bytes(&bytes)?)
}
