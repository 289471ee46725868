//! Unpacks one layer archive into an empty folder, as an overlay lower, and lets nothing out of that folder.
//!
//! `decode` undoes compression, `reader` reads tar, `apply` makes the entries, `root` resolves every path below the
//! folder by `openat2`. An archive that fails leaves a folder for the caller to delete; nothing outside is touched.

mod apply;
mod decode;
mod reader;
mod remove;
mod root;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use self::apply::Applier;
use self::reader::TarReader;
use super::digest::Hashing;
use super::{Digest, ImageError};

pub(super) use self::decode::{Limited, decoder};
pub(super) use self::reader::{Entry, EntryKind, TarReader as Tar};
pub(super) use self::remove::remove_tree;

/// What a single layer may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders, links and all else.
    pub entries: u64,
}

impl Default for UnpackLimits {
    /// 64 GiB and 4 million entries.
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 4_000_000,
        }
    }
}

impl UnpackLimits {
    /// Length of an archive that keeps the limits: files, and a generous header for each.
    pub(super) fn stream(self) -> u64 {
        self.bytes
            .saturating_add(self.entries.saturating_mul(4096))
            .saturating_add(1 << 20)
    }
}

/// What an archive turned out to be.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Digest of the uncompressed archive.
    pub(super) diff_id: Digest,
    /// Bytes of all files together.
    pub(super) bytes: u64,
}

/// Unpacks the archive, compressed or not, into the folder. `strict_end` refuses an archive without its end mark, for
/// archives whose digest nobody has told.
pub(super) fn unpack(
    archive: &Path,
    folder: &Path,
    limits: UnpackLimits,
    strict_end: bool,
) -> Result<Unpacked, ImageError> {
    let what = format!("archive {}", archive.display());
    let file = File::open(archive).map_err(|e| ImageError::io("open", archive, e))?;
    let decoded = decoder(file, &what)?;
    let mut stream = Hashing::new(Limited::new(decoded, limits.stream(), limits.bytes));
    let mut applier = Applier::new(folder, limits)?;
    {
        let mut tar = TarReader::new(BufReader::with_capacity(256 << 10, &mut stream), &what);
        while let Some(mut entry) = tar.next_entry()? {
            applier.apply(&mut entry)?;
        }
        if strict_end && !tar.saw_end() {
            return Err(ImageError::Truncated(what));
        }
    }
    let bytes = applier.finish()?;
    io::copy(&mut stream, &mut io::sink()).map_err(|e| read_error(&what, e))?;
    let (diff_id, _) = stream.finish();
    Ok(Unpacked { diff_id, bytes })
}

/// The named error for a failure to read an archive.
pub(super) fn read_error(what: &str, error: io::Error) -> ImageError {
    if let Some(limit) = decode::limit_of(&error) {
        return ImageError::TooLarge { limit };
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::Truncated(what.to_owned()),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other
            if error.raw_os_error().is_none() =>
        {
            ImageError::malformed(what, error)
        }
        _ => ImageError::Io {
            action: format!("read {what}"),
            source: error,
        },
    }
}

/// Reads until the buffer is full or the stream is over; the number of bytes read.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
