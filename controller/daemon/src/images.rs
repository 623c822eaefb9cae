//! Image folders on their way: sending one, receiving one. Nothing is shared between nodes; everything is bounded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mosix_engine::commit::Stamp;
use mosix_guest::Carried;
use mosix_wire::frame;
use mosix_wire::tls::{Stream, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::protocol::{ImageFrame, MAX_MESSAGE_BYTES, Opening};

/// A dump of one process has about 20 files.
const MAX_FILES: usize = 4096;

/// A new, empty folder for images, readable by nobody else.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Connects to the node that shall have the body; done before the freeze, so that the handshake is not in the blackout.
pub(crate) async fn open(tls: &Tls, target: &str, stamp: Stamp, timeout: Duration) -> Result<Stream> {
    let mut stream = tls.connect(target, timeout).await?;
    frame::write_frame(&mut stream, &Opening::Images { stamp }).await?;
    Ok(stream)
}

/// Sends all files of a folder, and the word that they are complete once `check` has passed; returns their size together, in bytes.
pub(crate) async fn send(mut stream: Stream, dir: &Path, carried: Carried, check: impl Future<Output = Result<()>>) -> Result<u64> {
    let mut total = 0;
    let mut buffer = vec![0; frame::CHUNK_BYTES];
    let mut entries = tokio::fs::read_dir(dir).await.with_context(|| format!("cannot list {}", dir.display()))?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") || !entry.file_type().await?.is_file() {
            continue;
        }
        let bytes = entry.metadata().await?.len();
        frame::write_frame(&mut stream, &ImageFrame::File { name, bytes }).await?;
        let mut file = tokio::fs::File::open(entry.path()).await?;
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read(buffer.get_mut(..wanted).unwrap_or_default()).await?;
            ensure!(count > 0, "the image {} shrank while it was sent", entry.path().display());
            frame::write_bytes(&mut stream, buffer.get(..count).unwrap_or_default()).await?;
            left -= count as u64;
        }
        total += bytes;
    }
    check.await?;
    frame::write_frame(&mut stream, &ImageFrame::End { carried }).await?;
    stream.shutdown().await?;
    Ok(total)
}

/// Receives a folder's files into `dir`, which exists and is empty. More than `limit_bytes` are refused.
pub(crate) async fn receive(mut stream: Stream, dir: PathBuf, limit_bytes: u64) -> Result<Carried> {
    let mut left = limit_bytes;
    let mut buffer = Vec::new();
    for _ in 0..MAX_FILES {
        let (name, bytes) = match frame::read_frame(&mut stream, MAX_MESSAGE_BYTES).await.context("the images broke off")? {
            ImageFrame::File { name, bytes } => (name, bytes),
            ImageFrame::End { carried } => return Ok(carried),
        };
        ensure!(is_plain_name(&name), "an image is named {name:?}, which is no plain file name");
        left = left.checked_sub(bytes).with_context(|| format!("the images exceed {limit_bytes} bytes"))?;
        receive_file(&mut stream, &dir.join(name), bytes, &mut buffer).await?;
    }
    bail!("more than {MAX_FILES} images");
}

async fn receive_file(stream: &mut Stream, path: &Path, bytes: u64, buffer: &mut Vec<u8>) -> Result<()> {
    let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await?;
    let mut left = bytes;
    while left > 0 {
        let count = frame::read_bytes_into(stream, buffer, frame::CHUNK_BYTES).await.context("the images broke off")? as u64;
        ensure!(count > 0 && count <= left, "an image is longer than announced");
        file.write_all(buffer).await.with_context(|| format!("cannot write {}", path.display()))?;
        left -= count;
    }
    file.flush().await?;
    Ok(())
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert!(is_plain_name("pages-1.img") && is_plain_name("core-42.img"));
        for bad in ["", "..", "../x", "a/b", ".hidden", "a\0b", "a b"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
