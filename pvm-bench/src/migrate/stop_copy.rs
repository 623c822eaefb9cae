//! Moving by plain CRIU: the process is dumped to memory in one node and restored from there in the next.
//!
//! The best case of stop and copy: both nodes see the same tmpfs, so nothing is sent, and both workers are waiting ([`super::copy_end`]).

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use mosix_lab::{Child, Exec, Lab, Node};
use nix::sys::signal::Signal;

use super::copy_end::{News, Order, Side};
use super::load::Load;
use super::subject::{MoveCpu, Moved, Mover, Subject};
use super::{Tools, bad};
use crate::{Result, failed};

/// The process's number comes from here on: the other nodes, which have few processes, never reach it.
const FIRST_PID: u32 = 20_000;
/// For an answer of an end; it has a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(150);
/// For a killed process to be gone.
const KILLED: Duration = Duration::from_secs(20);

/// A process of the first node, and where it is.
pub struct ByCriu<'a> {
    lab: &'a Lab,
    tools: &'a Tools,
    images: Images,
    stdin: PipeReader,
    stdout: PipeWriter,
    pid: i32,
    at: usize,
    holder: Holder,
    cost: Option<MoveCpu>,
}

/// What the process is a child of.
enum Holder {
    /// The node's first process.
    Original(Child),
    /// The end that restored it.
    Restored(End),
}

/// A running `copy-end`.
struct End {
    child: Child,
    socket: UnixStream,
    lines: BufReader<UnixStream>,
}

/// The folder of the images; removed when dropped.
struct Images(PathBuf);

impl<'a> ByCriu<'a> {
    /// Starts the process on the first node.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(lab: &'a Lab, tools: &'a Tools, load: Load) -> Result<(Self, Subject)> {
        let home = lab.nodes().first().ok_or_else(|| bad("the lab has no nodes"))?;
        let images = Images(PathBuf::from(format!("/dev/shm/mosix-bench-{}", lab.id())));
        raise_pids(home)?;
        let (subject, stdin, stdout) = Subject::open(load.program.report_signal())?;
        let exec = Exec::new(tools.programs.argv(load)).cwd("/").stdin(copy(&stdin)?).stdout(copy(&stdout)?);
        let child = home.spawn(exec.signal_on_disconnect(Signal::SIGKILL))?;
        let pid = child.pid();
        Ok((Self { lab, tools, images, stdin, stdout, pid, at: 0, holder: Holder::Original(child), cost: None }, subject))
    }

    fn end(&self, node: usize, side: Side) -> Result<End> {
        let node = self.lab.nodes().get(node).ok_or_else(|| bad("the lab has lost a node"))?;
        let (socket, theirs) = UnixStream::pair().map_err(failed("making a socket pair"))?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed("setting up a socket"))?;
        let lines = BufReader::new(socket.try_clone().map_err(failed("copying a socket"))?);
        let side = if side == Side::Dump { "dump" } else { "restore" };
        let pid = self.pid.to_string();
        let words = ["copy-end", "--side", side, "--pid", &pid].into_iter().map(std::ffi::OsString::from);
        let paths = ["--criu".into(), self.tools.criu.path().into(), "--images".into(), self.images.0.clone().into_os_string()];
        let exec = Exec::new([self.tools.bench.clone().into_os_string()].into_iter().chain(words).chain(paths)).cwd("/");
        let exec = exec.stdin(copy(&self.stdin)?).stdout(copy(&self.stdout)?).stderr(theirs);
        Ok(End { child: node.spawn(exec)?, socket, lines })
    }

    /// Lets the process run on where it was.
    fn stays(&mut self, why: String) -> Result<std::result::Result<Moved, String>> {
        // It may or may not have been stopped already.
        self.signal(Signal::SIGCONT)?;
        match self.ended(Duration::ZERO)? {
            Some(status) => Err(bad(format!("{why}; the process is gone: {status}"))),
            None => Ok(Err(why)),
        }
    }
}

impl Mover for ByCriu<'_> {
    fn shift(&mut self) -> Result<std::result::Result<Moved, String>> {
        self.images.clear()?;
        let next = (self.at + 1) % self.lab.nodes().len();
        let (mut source, mut target) = (self.end(self.at, Side::Dump)?, self.end(next, Side::Restore)?);
        source.wait_until_ready()?;
        target.wait_until_ready()?;
        let asked = Instant::now();
        let (frozen_at_ms, source_ms) = match source.go()? {
            News::Dumped { frozen_at_ms, cpu_ms } => (frozen_at_ms, cpu_ms),
            other => return self.stays(format!("the dump: {other:?}")),
        };
        let (at_ms, target_ms) = match target.go()? {
            News::Running { at_ms, cpu_ms } => (at_ms, cpu_ms),
            other => return self.stays(format!("the restore: {other:?}")),
        };
        let total_ms = asked.elapsed().as_secs_f64() * 1000.0;
        let bytes = self.images.bytes()?;
        self.signal(Signal::SIGKILL)?;
        if self.ended(KILLED)?.is_none() {
            return Err(bad("the dumped process does not go"));
        }
        self.holder = Holder::Restored(target);
        self.at = next;
        self.images.clear()?;
        self.cost = Some(MoveCpu { source_ms, target_ms });
        Ok(Ok(Moved { total_ms, freeze_ms: at_ms - frozen_at_ms, bytes, patched: false, record: None }))
    }

    fn cpu(&mut self) -> Result<Option<MoveCpu>> {
        Ok(self.cost.take())
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.holder {
            Holder::Original(child) => Ok(child.kill(signal)?),
            Holder::Restored(end) => end.tell(&Order::Signal(signal as i32)),
        }
    }

    fn ended(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        match &mut self.holder {
            Holder::Original(child) | Holder::Restored(End { child, .. }) => Ok(child.wait_for(Some(patience))?),
        }
    }

    fn pid_outside(&self) -> Option<i32> {
        match &self.holder {
            Holder::Original(child) => child.pid_outside(),
            Holder::Restored(_) => None,
        }
    }
}

impl End {
    fn tell(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order).map_err(|error| bad(error.to_string()))?;
        line.push('\n');
        self.socket.write_all(line.as_bytes()).map_err(failed("telling an end of a copy"))
    }

    fn hear(&mut self) -> Result<News> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(failed("hearing from an end of a copy"))?;
        serde_json::from_str(&line).map_err(|_| bad(format!("an end of a copy said `{}`", line.trim())))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        match self.hear()? {
            News::Ready => Ok(()),
            other => Err(bad(format!("an end of a copy is not ready: {other:?}"))),
        }
    }

    fn go(&mut self) -> Result<News> {
        self.tell(&Order::Go)?;
        self.hear()
    }
}

impl Images {
    /// An empty folder that nobody else can read.
    fn clear(&self) -> Result<()> {
        self.remove().map_err(failed(format!("clearing {}", self.0.display())))?;
        std::fs::DirBuilder::new().mode(0o700).create(&self.0).map_err(failed(format!("making {}", self.0.display())))
    }

    fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> Result<u64> {
        folder_bytes(&self.0).map_err(failed("measuring the images"))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            // A destructor has nobody to return an error to; this is memory that somebody will miss.
            eprintln!("pvm-bench: {} stays: {error}", self.0.display());
        }
    }
}

/// Bytes of the image files in a folder; CRIU's logs are none.
fn folder_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "img") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

/// The node's next processes have high numbers.
fn raise_pids(node: &Node) -> Result<()> {
    let script = format!("[ $(cat /proc/sys/kernel/ns_last_pid) -ge {FIRST_PID} ] || echo {FIRST_PID} > /proc/sys/kernel/ns_last_pid");
    let (status, said) = node.output(Exec::new(["sh", "-c", &script]))?;
    if status.success() { Ok(()) } else { Err(bad(format!("choosing the process's number: {status}, {}", said.trim()))) }
}

fn copy(fd: &impl std::os::fd::AsFd) -> Result<std::os::fd::OwnedFd> {
    fd.as_fd().try_clone_to_owned().map_err(failed("copying a descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_count() {
        let dir = tempfile::tempdir().unwrap();
        for (name, size) in [("pages-1.img", 100), ("core-1.img", 10), ("dump.log", 1000), ("stats-dump", 1000)] {
            std::fs::write(dir.path().join(name), vec![0; size]).unwrap();
        }
        assert_eq!(folder_bytes(dir.path()).unwrap(), 110);
    }

    #[test]
    fn the_images_folder_is_private_and_goes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images");
        let images = Images(path.clone());
        images.clear().unwrap();
        std::fs::write(path.join("x.img"), "x").unwrap();
        images.clear().unwrap();
        assert_eq!(images.bytes().unwrap(), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(images);
        assert!(!path.exists());
    }
}
