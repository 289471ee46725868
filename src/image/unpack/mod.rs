<<<<<<< HEAD
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
=======
//! One layer's tar becomes one overlay lower: whiteouts become the overlay's own, and no entry leaves the folder.

mod entry;
mod tree;

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use self::entry::Unpacker;
use super::compression::decompress;
use super::error::{ImageError, Result};

/// Bounds for one layer, against archives made to fill the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files of a layer.
    pub bytes: u64,
    /// Entries of a layer.
    pub entries: u64,
}

impl Default for Limits {
>>>>>>> network
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 4_000_000,
        }
    }
}

<<<<<<< HEAD
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
=======
/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar, `sha256:…`.
    pub(crate) diff_id: String,
    /// Bytes of its files.
    pub(crate) size: u64,
}

/// Unpacks a tar (plain, gzip or zstd) into an empty folder. What it leaves after an error is the caller's to remove.
pub(crate) fn unpack(what: &str, source: impl Read, to: &Path, limits: Limits) -> Result<Unpacked> {
    let (_, plain) = decompress(source).map_err(|error| broken(what, error))?;
    let mut archive = tar::Archive::new(Meter::new(plain));
    let mut unpacker = Unpacker::new(what, to, limits)?;
    for entry in archive.entries().map_err(|error| broken(what, error))? {
        unpacker.add(entry.map_err(|error| broken(what, error))?)?;
    }
    let size = unpacker.finish()?;
    let mut meter = archive.into_inner();
    // Compressed padding without end is a bomb as well.
    let rest = io::copy(&mut meter.by_ref().take(limits.bytes), &mut io::sink());
    if rest.map_err(|error| broken(what, error))? == limits.bytes {
        return Err(ImageError::TooManyBytes {
            what: what.to_owned(),
            limit: limits.bytes,
        });
    }
    if meter.zeros < 512 {
        return Err(ImageError::Truncated(what.to_owned()));
    }
    Ok(Unpacked {
        diff_id: format!("sha256:{}", hex::encode(meter.hash.finalize())),
        size,
    })
}

/// An error of the archive's reader: cut off, or no such archive at all.
pub(crate) fn broken(what: &str, error: io::Error) -> ImageError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ImageError::Truncated(what.to_owned());
    }
    let text = error.to_string();
    if text.contains("unexpected EOF") || text.contains("failed to read entire block") {
        return ImageError::Truncated(what.to_owned());
    }
    ImageError::malformed(what, text)
}

/// Counts and digests what is read.
struct Meter<R> {
    source: R,
    hash: Sha256,
    /// Zero bytes at the end so far: a whole archive ends with blocks of them.
    zeros: u64,
}

impl<R> Meter<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            hash: Sha256::new(),
            zeros: 0,
        }
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        let bytes = &buffer[..count];
        self.hash.update(bytes);
        let tail = bytes.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        self.zeros = if tail == count as u64 {
            self.zeros + tail
        } else {
            tail
        };
        Ok(count)
    }
}
>>>>>>> network
