//! The frame of image files: magic numbers and length-prefixed records.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

use super::ImageError;

/// Largest image that is read: page maps of very scattered processes are the largest, with 18 bytes for each run of pages.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Largest record: an mm image has all mappings of a process in one (24 bytes each).
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// In front of the image's own magic in all images but the inventory and raw ones.
const COMMON_MAGIC: u32 = 0x5456_4319;

/// Kinds of images, by their magic number (`criu/include/magic.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `inventory.img`
    Inventory = 0x5831_3116,
    /// `pstree.img`
    Pstree = 0x5027_3030,
    /// `pagemap-PID.img`, `pagemap-shmem-ID.img`
    Pagemap = 0x5608_4025,
    /// `core-TID.img`
    Core = 0x5505_3847,
    /// `mm-PID.img`
    Mm = 0x5749_2820,
    /// `files.img`
    Files = 0x5630_3138,
    /// `timens-ID.img`
    Timens = 0x4311_4433,
}

impl Kind {
    fn magics(self) -> &'static [u32] {
        const fn framed(kind: Kind) -> [u32; 2] {
            [COMMON_MAGIC, kind as u32]
        }
        match self {
            Self::Inventory => const { &[Self::Inventory as u32] },
            Self::Pstree => const { &framed(Self::Pstree) },
            Self::Pagemap => const { &framed(Self::Pagemap) },
            Self::Core => const { &framed(Self::Core) },
            Self::Mm => const { &framed(Self::Mm) },
            Self::Files => const { &framed(Self::Files) },
            Self::Timens => const { &framed(Self::Timens) },
        }
    }
}

/// The records of an image, undecoded.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
}

impl Image {
    /// Reads the image at `path`.
    ///
    /// # Errors
    /// It cannot be read, is larger than [`MAX_IMAGE_BYTES`], or is of another kind.
    pub fn open(path: &Path, kind: Kind) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io { path: path.to_owned(), source };
        let length = fs::metadata(path).map_err(io)?.len();
        let malformed = |what: String| ImageError::Malformed { path: path.to_owned(), what };
        if length > MAX_IMAGE_BYTES {
            return Err(malformed(format!("{length} bytes are too many for an image")));
        }
        let mut image = Self { path: path.to_owned(), bytes: fs::read(path).map_err(io)?, at: 0 };
        for magic in kind.magics() {
            let found = image.word().ok_or_else(|| malformed("too short for an image".into()))?;
            if found != *magic {
                return Err(malformed(format!("magic number {found:#x} instead of {magic:#x}: not a {kind:?} image")));
            }
        }
        Ok(image)
    }

    /// Decodes the next record, if there is one.
    ///
    /// # Errors
    /// It is cut off or is another message.
    pub fn record<M: Message + Default>(&mut self) -> Result<Option<M>, ImageError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let at = self.at;
        let Some(length) = self.take() else {
            return Err(self.malformed(format!("the record at byte {at} is cut off")));
        };
        let bytes = self.bytes.get(self.at - length..self.at).unwrap_or_default();
        M::decode(bytes).map(Some).map_err(|error| self.malformed(format!("the record at byte {at}: {error}")))
    }

    /// Decodes the one record of an image that has just one.
    ///
    /// # Errors
    /// As [`Self::record`]; or there are none, or more.
    pub fn only<M: Message + Default>(mut self) -> Result<M, ImageError> {
        let message = self.record()?.ok_or_else(|| self.malformed("no record".into()))?;
        if self.at == self.bytes.len() { Ok(message) } else { Err(self.malformed("more than one record".into())) }
    }

    /// An error about this image.
    pub(crate) fn malformed(&self, what: String) -> ImageError {
        ImageError::Malformed { path: self.path.clone(), what }
    }

    fn word(&mut self) -> Option<u32> {
        let word = self.bytes.get(self.at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
        self.at += 4;
        Some(word)
    }

    /// Moves behind a whole record and returns its length.
    fn take(&mut self) -> Option<usize> {
        let length = usize::try_from(self.word()?).ok().filter(|length| *length <= MAX_RECORD_BYTES)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        self.at = end;
        Some(length)
    }
}

/// Builds an image.
#[derive(Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// An image of this kind, without records yet.
    pub fn new(kind: Kind) -> Self {
        Self { bytes: kind.magics().iter().flat_map(|magic| magic.to_le_bytes()).collect() }
    }

    /// Adds a record.
    pub fn add<M: Message>(&mut self, message: &M) {
        // A message that was decoded, or made here, is far below 4 GiB.
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&message.encode_to_vec());
    }

    /// The file's content.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes it beside `path` and renames, so that nobody sees a part of it.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(self, path: &Path) -> Result<(), ImageError> {
        let fresh = path.with_extension("img-new");
        fs::write(&fresh, self.bytes)
            .and_then(|()| fs::rename(&fresh, path))
            .map_err(|source| ImageError::Io { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::messages::PagemapHead;

    #[test]
    fn cut_or_foreign_images_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pagemap-1.img");
        let mut builder = Builder::new(Kind::Pagemap);
        builder.add(&PagemapHead { pages_id: 3 });
        let whole = builder.finish();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let found = Image::open(&path, Kind::Pagemap).and_then(Image::only::<PagemapHead>);
            assert!(found.is_err(), "{length} of {} bytes", whole.len());
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(Image::open(&path, Kind::Pagemap).and_then(Image::only::<PagemapHead>).unwrap().pages_id, 3);
        assert!(Image::open(&path, Kind::Mm).unwrap_err().to_string().contains("not a Mm image"));
        let mut huge = whole.clone();
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        fs::write(&path, &huge).unwrap();
        assert!(Image::open(&path, Kind::Pagemap).and_then(Image::only::<PagemapHead>).is_err());
    }
}
