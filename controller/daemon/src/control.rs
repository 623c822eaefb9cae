//! The control socket: what `mosixctl` asks, answered from the node's state.
//!
//! Peers are known by their credentials: root may do all, another user sees all and moves only their own processes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mosix_wire::control::{MAX_LINE_BYTES, Reply, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use crate::doctor;
use crate::home;
use crate::node::Node;
use crate::report;

/// Clients at a time; more wait.
const MAX_CLIENTS: usize = 64;
/// A client that says nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the socket; an old one that nobody listens on is removed.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another mosixd answers at {}: stop it first", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove the old socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot make the control socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves clients until the daemon ends.
pub(crate) async fn serve(node: Rc<Node>, listener: UnixListener) {
    let clients = std::sync::Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = client(&node, stream).await {
                        tracing::debug!("control: {error:#}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(node: &Rc<Node>, mut stream: UnixStream) -> Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_LINE_BYTES as u64));
    tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await.context("the client says nothing")??;
    let reply = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => match answer(node, uid, request, &mut writer).await {
            Ok(reply) => reply,
            Err(error) => Reply::Error { message: format!("{error:#}") },
        },
        Err(error) => Reply::Error { message: format!("not understood: {error}; are mosixctl and mosixd of the same version?") },
    };
    write(&mut writer, &reply).await
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(writer.write_all(&line).await?)
}

async fn answer(node: &Rc<Node>, uid: u32, request: Request, writer: &mut (impl AsyncWriteExt + Unpin)) -> Result<Reply> {
    match request {
        Request::Status => Ok(Reply::Status(report::status(node))),
        Request::Ps { all } => Ok(Reply::Ps { processes: report::processes(node, all) }),
        Request::Explain { pid } => Ok(Reply::Explained(report::explain(node, pid)?)),
        Request::Stats => Ok(Reply::Stats(report::stats(node))),
        Request::Doctor => Ok(Reply::Diagnosis { checks: doctor::examine(node) }),
        Request::Place => {
            let now_s = node.now_s();
            let figures = node.figures();
            let chosen = mosix_policy::place(&node.params, &figures, &mut node.window.borrow_mut(), now_s, &mut *node.rng.borrow_mut());
            if chosen == node.id() {
                node.ledger.borrow_mut().born(now_s);
            }
            Ok(Reply::Placed { node: node.name_of(chosen) })
        }
        Request::Balance { on } => {
            if uid != 0 {
                bail!("only root may switch the balancing");
            }
            node.balance.set(on);
            node.news.notify_one();
            Ok(Reply::Done)
        }
        Request::Migrate { pid, target } => migrate(node, uid, pid, &target, writer).await,
    }
}

async fn migrate(node: &Rc<Node>, uid: u32, pid: i32, target: &str, writer: &mut (impl AsyncWriteExt + Unpin)) -> Result<Reply> {
    let owner = report::owner(node, pid).with_context(|| format!("there is no process {pid} here"))?;
    if uid != 0 && uid != owner {
        bail!("process {pid} belongs to user {owner}: only that user and root may move it");
    }
    let target = match target {
        "home" => node.id(),
        name => node.id_of(name).with_context(|| format!("there is no node {name}: `mosixctl status` lists them"))?,
    };
    let is_native = !node.deputies.borrow().contains_key(&pid);
    if is_native && target == node.id() {
        bail!("process {pid} is at home");
    }
    let (progress, mut stages) = mpsc::unbounded_channel();
    let moving = home::move_process(node, pid, target, true, Some(progress));
    tokio::pin!(moving);
    loop {
        tokio::select! {
            result = &mut moving => return match result {
                Ok(moved) => Ok(Reply::Moved(moved)),
                Err(stay) if stay.gone => bail!("process {pid} was not moved: {}", stay.why),
                Err(stay) => bail!("process {pid} was not moved and runs on: {}", stay.why),
            },
            Some(stage) = stages.recv() => write(writer, &Reply::Progress { stage }).await?,
        }
    }
}
