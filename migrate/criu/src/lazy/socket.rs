//! CRIU's end of the conversation: `lazy-pages.socket`.
//!
//! CRIU connects once. For each task it sends the pid (of the images; 32 bits), and then one byte with the task's userfaultfd. A zombie has the negative pid and
//! no descriptor. A last word says that all tasks are restored; then CRIU lets them run. Source: `criu/uffd.c` of CRIU 4.2.1.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::sys;

/// CRIU's name for the socket, in its working folder, which is that of the images.
const NAME: &str = "lazy-pages.socket";

/// CRIU's LAZY_PAGES_RESTORE_FINISHED; larger than any pid.
const FINISHED: u32 = 0x5253_5446;

/// CRIU sends the parts of a message at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What CRIU says.
#[derive(Debug)]
pub(super) enum Word {
    /// A task and the descriptor for its memory.
    Task(i32, OwnedFd),
    /// A task without memory.
    Zombie,
    /// All tasks are restored.
    Finished,
    /// The connection has ended.
    End,
}

/// Listens in the folder. A socket of an earlier server there is replaced.
pub(super) fn listen(dir: &Path) -> io::Result<UnixListener> {
    // Addresses of sockets are short, paths are not.
    let folder = File::open(dir)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The one that was waited for may have gone again.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes the connection that is there.
pub(super) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads the next word.
pub(super) fn read(stream: &UnixStream) -> io::Result<Word> {
    let mut number = [0; 4];
    match receive(stream, &mut number)? {
        (0, _) => return Ok(Word::End),
        (4, None) => {}
        (length, descriptor) => return Err(malformed(&format!("{length} bytes, descriptor {descriptor:?}, instead of a pid"))),
    }
    if u32::from_ne_bytes(number) == FINISHED {
        return Ok(Word::Finished);
    }
    let pid = i32::from_ne_bytes(number);
    if pid < 0 {
        return Ok(Word::Zombie);
    }
    match receive(stream, &mut [0])? {
        (1, Some(descriptor)) => Ok(Word::Task(pid, descriptor)),
        _ => Err(malformed("no descriptor after a pid")),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Receives bytes, and one descriptor at most. A connection that was broken off has ended, too.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
        Ok(received) => received,
        Err(Errno::ECONNRESET) => return Ok((0, None)),
        Err(errno) => return Err(errno.into()),
    };
    let mut descriptor = None;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            descriptor = sys::own_received(&numbers);
        }
    }
    Ok((received.bytes, descriptor))
}
