//! Image files over a blocking stream. Nothing is shared between nodes; everything is bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mosix_guest::Carried;

use crate::protocol::ImageFrame;

/// A dump of one process has about 20 files.
const MAX_FILES: usize = 4096;

/// A new, empty folder for images, readable by nobody else.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Sends all files of a folder but logs; returns their size together, in bytes.
pub(crate) fn send(stream: &mut impl Write, dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") || !entry.file_type()?.is_file() {
            continue;
        }
        let file = File::open(entry.path()).with_context(|| format!("cannot read {}", entry.path().display()))?;
        let bytes = file.metadata()?.len();
        mosix_guest::send(stream, &ImageFrame::File { name, bytes })?;
        let copied = io::copy(&mut file.take(bytes), stream)?;
        ensure!(copied == bytes, "the image {} shrank while it was sent", entry.path().display());
        total += bytes;
    }
    Ok(total)
}

/// How many processes the images in a folder are of.
pub(crate) fn processes(dir: &Path) -> Result<usize> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let is_core = |name: &str| name.strip_prefix("pagemap-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    Ok(entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_core)).count())
}

/// Says that all files have been sent.
pub(crate) fn end(stream: &mut impl Write, carried: Carried) -> Result<()> {
    mosix_guest::send(stream, &ImageFrame::End { carried })?;
    Ok(stream.flush()?)
}

/// Receives a folder's files into `dir`, which exists and has none of them. More than `limit_bytes` are refused.
pub(crate) fn receive(stream: &mut impl Read, dir: &Path, limit_bytes: u64) -> Result<Carried> {
    let mut left = limit_bytes;
    for _ in 0..MAX_FILES {
        let (name, bytes) = match mosix_guest::receive(stream).context("the images broke off")? {
            ImageFrame::File { name, bytes } => (name, bytes),
            ImageFrame::End { carried } => return Ok(carried),
        };
        ensure!(is_plain_name(&name), "an image is named {name:?}, which is no plain file name");
        left = left.checked_sub(bytes).with_context(|| format!("the images exceed {limit_bytes} bytes"))?;
        let path = dir.join(name);
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let copied = io::copy(&mut stream.take(bytes), &mut file).with_context(|| format!("cannot receive {}", path.display()))?;
        ensure!(copied == bytes, "the images broke off");
    }
    bail!("more than {MAX_FILES} images");
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

    #[test]
    fn a_folder_arrives_as_it_was_but_for_its_logs() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a.img"), vec![7; 100_000]).unwrap();
        fs::write(from.path().join("empty.img"), "").unwrap();
        fs::write(from.path().join("dump.log"), "x").unwrap();
        let mut wire = Vec::new();
        assert_eq!(send(&mut wire, from.path()).unwrap(), 100_000);
        end(&mut wire, Carried { max_tid: 9, unread: Vec::new() }).unwrap();
        assert_eq!(receive(&mut wire.as_slice(), to.path(), 100_000).unwrap().max_tid, 9);
        assert_eq!(fs::read(to.path().join("a.img")).unwrap(), vec![7; 100_000]);
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
        let again = receive(&mut wire.as_slice(), to.path(), 100_000).unwrap_err();
        assert!(again.to_string().contains("cannot make"), "what is there is not overwritten: {again:#}");
    }

    #[test]
    fn too_much_and_too_little_are_errors() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a.img"), vec![7; 5000]).unwrap();
        let mut wire = Vec::new();
        send(&mut wire, from.path()).unwrap();
        assert!(receive(&mut wire.as_slice(), to.path(), 4999).unwrap_err().to_string().contains("exceed"));
        wire.truncate(3000);
        assert!(receive(&mut wire.as_slice(), to.path(), 5000).unwrap_err().to_string().contains("broke off"));
    }
}
