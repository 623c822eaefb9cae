//! Frames: typed messages and raw chunks over a byte stream.
//!
//! A frame is its length (`u32`, little-endian) and that many bytes: one postcard value ([`write_frame`]) or raw bytes
//! ([`write_bytes`]). Which of the two comes next is agreed by the messages themselves: a raw frame always follows a
//! typed one that announces it. Before the first frame both sides send a [hello](exchange_hello) of 9 bytes: magic,
//! protocol version, and whether the sender accepts the other side.
//!
//! The reader states the largest frame that it accepts. Memory grows only as bytes really arrive and never beyond that
//! bound, so a lying length costs nothing. After any error but [`FrameError::Oversize`] on *writing* the stream is out
//! of step and must be dropped.
//!
//! # Cancellation
//! [`read_frame`], [`read_bytes_into`] and all writers must run to their end: dropped in the middle (by `select!` or a
//! timeout) they leave a part of a frame behind, and the stream must be dropped too. [`FrameReader::read`] *is* safe to
//! cancel: what came in stays in the reader and the next call goes on.

use std::io::{self, IoSlice};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of everything that goes over a connection. Both sides must have the same.
pub const PROTOCOL_VERSION: u16 = 1;

/// No frame is larger, whatever the reader would accept: 64 MiB.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// Recommended size of raw chunks, and the bound to pass to [`read_bytes_into`] for them: 1 MiB.
pub const CHUNK_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 6] = b"\x93MOSIX";
const HELLO_BYTES: usize = 9;
const HEADER_BYTES: usize = 4;
/// A frame's buffer starts with at most this and then grows with what arrives.
const FIRST_ALLOCATION_BYTES: usize = 64 << 10;

/// What can go wrong with a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other side closed the stream between two frames: the orderly end.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side closed the stream within a frame.
    #[error("the connection ended in the middle of a frame ({have_bytes} of {want_bytes} bytes)")]
    Truncated {
        /// Bytes that came.
        have_bytes: usize,
        /// Bytes that were announced.
        want_bytes: usize,
    },
    /// The frame is larger than allowed. On reading, nothing of it was read; on writing, nothing was sent.
    #[error("a frame of {len_bytes} bytes is larger than the {max_bytes} allowed here")]
    Oversize {
        /// Length of the frame.
        len_bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The frame is not the expected message.
    #[error("a frame of {len_bytes} bytes does not hold the expected message: {why}")]
    Malformed {
        /// Length of the frame.
        len_bytes: usize,
        /// In words.
        why: String,
    },
    /// The other side does not speak this protocol.
    #[error("the other side does not speak the MOSIX protocol. Check the address and the port")]
    NotMosix,
    /// The other side speaks another version.
    #[error("the other side speaks version {theirs} of the protocol, this node version {ours}. Install the same version on both")]
    Version {
        /// Version in its hello.
        theirs: u16,
        /// [`PROTOCOL_VERSION`].
        ours: u16,
    },
    /// The other side refused us in its hello.
    #[error("the other side does not know this node as a member. Copy the newest members.toml to it and restart its daemon")]
    Refused,
}

/// Sends our hello and reads the other side's.
///
/// `accept` is what we tell it: false means "I do not know you", after which both sides should drop the stream.
/// Not safe to cancel.
///
/// # Errors
/// [`FrameError::NotMosix`], [`FrameError::Version`], [`FrameError::Refused`] if the other side says so, or what the
/// stream gives.
pub async fn exchange_hello<S>(stream: &mut S, accept: bool) -> Result<(), FrameError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ours = [0_u8; HELLO_BYTES];
    let (magic, rest) = ours.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    let [low, high] = PROTOCOL_VERSION.to_le_bytes();
    rest.copy_from_slice(&[low, high, u8::from(accept)]);
    stream.write_all(&ours).await?;
    stream.flush().await?;

    let mut theirs = [0_u8; HELLO_BYTES];
    if let Err(e) = stream.read_exact(&mut theirs).await {
        return Err(if e.kind() == io::ErrorKind::UnexpectedEof { FrameError::Closed } else { e.into() });
    }
    let [m0, m1, m2, m3, m4, m5, low, high, accepted] = theirs;
    if [m0, m1, m2, m3, m4, m5] != *MAGIC {
        return Err(FrameError::NotMosix);
    }
    let version = u16::from_le_bytes([low, high]);
    if version != PROTOCOL_VERSION {
        return Err(FrameError::Version { theirs: version, ours: PROTOCOL_VERSION });
    }
    if accepted == 1 { Ok(()) } else { Err(FrameError::Refused) }
}

/// Sends one message as a frame and flushes. Not safe to cancel.
///
/// # Errors
/// [`FrameError::Oversize`] or [`FrameError::Malformed`] (the value cannot be serialised) before anything is sent;
/// [`FrameError::Io`].
pub async fn write_frame<W, T>(writer: &mut W, message: &T) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
    T: Serialize + ?Sized,
{
    let mut frame =
        postcard::to_extend(message, vec![0_u8; HEADER_BYTES]).map_err(|e| FrameError::Malformed { len_bytes: 0, why: e.to_string() })?;
    let header = header(frame.len() - HEADER_BYTES)?;
    if let Some(place) = frame.first_chunk_mut::<HEADER_BYTES>() {
        *place = header;
    }
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(())
}

/// Sends raw bytes as one frame, without copying them, and flushes. Not safe to cancel.
///
/// # Errors
/// [`FrameError::Oversize`] before anything is sent; [`FrameError::Io`].
pub async fn write_bytes<W>(writer: &mut W, payload: &[u8]) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    let header = header(payload.len())?;
    // One vectored write, so that the header does not become a packet of its own.
    let mut slices = [IoSlice::new(&header), IoSlice::new(payload)];
    let mut left: &mut [IoSlice<'_>] = &mut slices;
    let mut left_bytes = HEADER_BYTES + payload.len();
    while left_bytes > 0 {
        let written = writer.write_vectored(left).await?;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        left_bytes = left_bytes.saturating_sub(written);
        IoSlice::advance_slices(&mut left, written);
    }
    writer.flush().await?;
    Ok(())
}

/// Reads one message of at most `max_bytes`. Not safe to cancel: see [`FrameReader`].
///
/// # Errors
/// [`FrameError::Closed`] at the orderly end; any other [`FrameError`] but those of the hello.
pub async fn read_frame<T>(reader: &mut (impl AsyncRead + Unpin), max_bytes: usize) -> Result<T, FrameError>
where
    T: DeserializeOwned,
{
    FrameReader::new().read(reader, max_bytes).await
}

/// Reads one raw frame of at most `max_bytes` into `buffer`, replacing its content. Reuse the buffer: once it has grown
/// to the size of a chunk, nothing is allocated or cleared any more. Returns the length. Not safe to cancel.
///
/// # Errors
/// As [`read_frame`], but never [`FrameError::Malformed`].
pub async fn read_bytes_into<R>(reader: &mut R, buffer: &mut Vec<u8>, max_bytes: usize) -> Result<usize, FrameError>
where
    R: AsyncRead + Unpin,
{
    buffer.clear();
    let mut frames = FrameReader { header: Vec::with_capacity(HEADER_BYTES), body: std::mem::take(buffer) };
    let result = frames.fill(reader, max_bytes).await;
    *buffer = frames.body;
    result
}

/// Reads typed frames and survives being cancelled. One for each stream; it never reads beyond the frame at hand, so
/// that raw frames may be read in between with [`read_bytes_into`].
#[derive(Debug, Default)]
pub struct FrameReader {
    header: Vec<u8>,
    body: Vec<u8>,
}

impl FrameReader {
    /// One that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one message of at most `max_bytes`. Safe to cancel: call it again, with the same bound, to go on.
    ///
    /// # Errors
    /// As [`read_frame`].
    pub async fn read<T>(&mut self, reader: &mut (impl AsyncRead + Unpin), max_bytes: usize) -> Result<T, FrameError>
    where
        T: DeserializeOwned,
    {
        let len_bytes = self.fill(reader, max_bytes).await?;
        let result = decode(&self.body);
        self.header.clear();
        self.body.clear();
        if self.body.capacity() > FIRST_ALLOCATION_BYTES {
            // One large message must not hold its memory for as long as the connection lives.
            self.body = Vec::new();
        }
        result.map_err(|why| FrameError::Malformed { len_bytes, why })
    }

    /// Reads until `body` holds a whole frame. Each await either adds what it read to `self` or reads nothing.
    async fn fill<R>(&mut self, reader: &mut R, max_bytes: usize) -> Result<usize, FrameError>
    where
        R: AsyncRead + Unpin,
    {
        if let Err(have_bytes) = fill_to(reader, &mut self.header, HEADER_BYTES).await? {
            return Err(match have_bytes {
                0 => FrameError::Closed,
                _ => FrameError::Truncated { have_bytes, want_bytes: HEADER_BYTES },
            });
        }
        let len_bytes = self.header.first_chunk().map_or(0, |h| u32::from_le_bytes(*h) as usize);
        let max_bytes = max_bytes.min(MAX_FRAME_BYTES);
        if len_bytes > max_bytes {
            return Err(FrameError::Oversize { len_bytes, max_bytes });
        }
        match fill_to(reader, &mut self.body, len_bytes).await? {
            Ok(()) => Ok(len_bytes),
            Err(have_bytes) => Err(FrameError::Truncated { have_bytes, want_bytes: len_bytes }),
        }
    }
}

/// Reads until `buffer` holds `want_bytes`; `Err(have)` if the stream ends before.
async fn fill_to<R>(reader: &mut R, buffer: &mut Vec<u8>, want_bytes: usize) -> Result<Result<(), usize>, io::Error>
where
    R: AsyncRead + Unpin,
{
    while buffer.len() < want_bytes {
        let missing = want_bytes - buffer.len();
        if buffer.capacity() == buffer.len() {
            // Doubling, but never beyond the frame.
            buffer.reserve_exact(missing.min(buffer.len().max(FIRST_ALLOCATION_BYTES)));
        }
        let mut rest = (&mut *reader).take(missing as u64);
        if rest.read_buf(buffer).await? == 0 {
            return Ok(Err(buffer.len()));
        }
    }
    Ok(Ok(()))
}

fn header(len_bytes: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    match u32::try_from(len_bytes) {
        Ok(len) if len_bytes <= MAX_FRAME_BYTES => Ok(len.to_le_bytes()),
        _ => Err(FrameError::Oversize { len_bytes, max_bytes: MAX_FRAME_BYTES }),
    }
}

/// The whole of `bytes` must be one value: left-overs mean that the two sides disagree about the type.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
        Err(e) => Err(e.to_string()),
    }
}
