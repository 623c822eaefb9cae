//! The client's side of the control protocol: one connection for each request, one JSON object a line.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mosix_wire::control::{MAX_LINE_BYTES, Reply, Request};

use crate::format::clean;

/// A daemon that is silent for so long is stuck: all but a move is answered from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A move reports its stages, but sending many gigabytes is one of them.
const MOVE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most `Progress` lines taken in answer to one request.
const MAX_PROGRESS_LINES: usize = 10_000;

/// Where to ask. Nothing is opened before a request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens at `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends `request` and returns the answer to it.
    ///
    /// # Errors
    /// If there is no daemon, it does not keep to the protocol, or it refuses ([`Reply::Error`]).
    pub(crate) fn ask(&self, request: &Request) -> Result<Reply> {
        self.ask_with_progress(request, |_| {})
    }

    /// As [`Client::ask`]; `progress` gets each stage that is reported before the answer.
    pub(crate) fn ask_with_progress(&self, request: &Request, mut progress: impl FnMut(&str)) -> Result<Reply> {
        let mut stream = self.connect(request)?;
        let mut line = serde_json::to_vec(request).context("cannot encode the request")?;
        line.push(b'\n');
        stream.write_all(&line).map_err(|error| self.broken(error))?;
        let mut reader = BufReader::new(stream);
        for _ in 0..MAX_PROGRESS_LINES {
            match self.read_reply(&mut reader)? {
                Reply::Progress { stage } => progress(&stage),
                Reply::Error { message } => bail!("{message}"),
                answer => return Ok(answer),
            }
        }
        bail!("mosixd reports progress without end: {MAX_PROGRESS_LINES} lines")
    }

    fn connect(&self, request: &Request) -> Result<UnixStream> {
        let path = self.socket.display();
        let stream = UnixStream::connect(&self.socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
                "no mosixd answers at {path} ({error}): is it running on this node? Start it, or name its socket with \
                 --socket or MOSIX_SOCKET"
            ),
            ErrorKind::PermissionDenied => {
                anyhow!("you may not use mosixd's socket {path} ({error}): ask root to let you")
            }
            _ => anyhow!("cannot connect to mosixd at {path}: {error}"),
        })?;
        let timeout = if matches!(request, Request::Migrate { .. }) { MOVE_TIMEOUT } else { ANSWER_TIMEOUT };
        stream.set_read_timeout(Some(timeout)).context("cannot limit the wait for an answer")?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).context("cannot limit the wait for mosixd")?;
        Ok(stream)
    }

    fn read_reply(&self, reader: &mut impl BufRead) -> Result<Reply> {
        let mut line = Vec::new();
        reader.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line).map_err(|error| self.broken(error))?;
        if line.is_empty() {
            bail!("mosixd at {} closed the connection without an answer: its log says why", self.socket.display());
        }
        if line.len() > MAX_LINE_BYTES {
            bail!("mosixd's answer is longer than {MAX_LINE_BYTES} bytes: it was not read");
        }
        if line.last() != Some(&b'\n') {
            bail!("mosixd's answer ends in its middle: did the daemon stop? Its log says why");
        }
        serde_json::from_slice(&line).map_err(|error| {
            let start = String::from_utf8_lossy(&line[..line.len().min(80)]).trim().to_owned();
            anyhow!("mosixd's answer is not understood ({error}): are both of the same version? It began: {}", clean(&start))
        })
    }

    fn broken(&self, error: std::io::Error) -> anyhow::Error {
        let path = self.socket.display();
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                anyhow!("mosixd at {path} does not answer in time: it may be stuck, its log says more")
            }
            _ => anyhow!("the connection to mosixd at {path} broke: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn read(bytes: Vec<u8>) -> Result<Reply> {
        Client::new(PathBuf::from("/s")).read_reply(&mut Cursor::new(bytes))
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let reply = read(b"{\"reply\":\"placed\",\"node\":\"a\",\"since\":3}\n".to_vec()).unwrap();
        assert_eq!(reply, Reply::Placed { node: "a".into() });
    }

    #[test]
    fn bad_answers_are_told_apart() {
        let error = |bytes: &[u8]| read(bytes.to_vec()).unwrap_err().to_string();
        assert!(error(b"").contains("without an answer"));
        assert!(error(b"{\"reply\":\"done\"}").contains("in its middle"));
        assert!(error(b"{\"reply\":\"other\"}\n").contains("same version"));
        assert!(!error(b"\x1b[2Jjunk\n").contains('\x1b'));
    }

    #[test]
    fn an_endless_line_is_not_stored() {
        let error = read(vec![b'x'; MAX_LINE_BYTES + 100]).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
