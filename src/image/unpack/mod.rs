//! One layer's tar becomes one overlay lower: whiteouts become the overlay's own, and no entry leaves the folder.

mod entry;
mod survey;
mod tree;

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use self::entry::{Layering, Unpacker};
use self::survey::Surveyor;
use super::compression::decompress;
use super::error::{ImageError, Result};

/// Bytes of the headers of one entry, long names and attributes included; they are held in memory.
const HEADERS: u64 = 1 << 20;

/// Bounds for one layer, against archives made to fill the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files of a layer.
    pub bytes: u64,
    /// Entries of a layer.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 4_000_000,
        }
    }
}

/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar, `sha256:…`.
    pub(crate) diff_id: String,
    /// Bytes of its files.
    pub(crate) size: u64,
    /// Bytes of the uncompressed tar.
    pub(crate) tar_size: u64,
}

/// Unpacks a tar (plain, gzip or zstd) into an empty folder. What it leaves after an error is the caller's to remove.
pub(crate) fn unpack(what: &str, source: impl Read, to: &Path, limits: Limits) -> Result<Unpacked> {
    let mut unpacker = Unpacker::new(what, to, limits)?;
    let walked = walk(what, source, limits, io::sink(), |entry| {
        unpacker.add(entry)
    })?;
    Ok(Unpacked {
        size: unpacker.finish()?,
        ..walked
    })
}

/// Unpacks a layer's archive over the layers that are in the folder already, so that the folder shows what a
/// container would see. The archive is read twice: a layer hides what is below it, never its own.
pub(crate) fn unpack_over(what: &str, archive: &Path, to: &Path, limits: Limits) -> Result<()> {
    for layering in [Layering::Whiteouts, Layering::Content] {
        let source = std::fs::File::open(archive);
        let source = source.map_err(ImageError::io(format!("open {}", archive.display())))?;
        let mut unpacker = Unpacker::new(what, to, limits)?.layered(layering);
        walk(what, source, limits, io::sink(), |entry| {
            unpacker.add(entry)
        })?;
        unpacker.finish()?;
    }
    Ok(())
}

/// Refuses what [`unpack`] refuses, as far as the archive alone tells it, and unpacks nothing. The plain tar goes to
/// `copy`; a failure there looks like one of the archive.
pub(crate) fn survey(
    what: &str,
    source: impl Read,
    limits: Limits,
    copy: impl Write,
) -> Result<Unpacked> {
    let mut surveyor = Surveyor::new(what, limits);
    let walked = walk(what, source, limits, copy, |entry| surveyor.add(entry))?;
    Ok(Unpacked {
        size: surveyor.bytes(),
        ..walked
    })
}

/// Goes through a tar to its very end. The size of its files is left to the caller.
fn walk<'a, W: Write>(
    what: &str,
    source: impl Read + 'a,
    limits: Limits,
    copy: W,
    mut add: impl FnMut(&mut tar::Entry<'_, Meter<Box<dyn Read + 'a>, W>>) -> Result<()>,
) -> Result<Unpacked> {
    let (_, plain) = decompress(source).map_err(|error| broken(what, error))?;
    let allowance = Rc::new(Cell::new(HEADERS));
    let mut archive = tar::Archive::new(Meter::new(plain, copy, allowance.clone()));
    for entry in archive.entries().map_err(|error| broken(what, error))? {
        let mut entry = entry.map_err(|error| broken(what, error))?;
        allowance.set(entry.size().saturating_add(HEADERS));
        add(&mut entry)?;
        // What was not wanted of it is read before the allowance shrinks again.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| broken(what, error))?;
        allowance.set(HEADERS);
    }
    allowance.set(u64::MAX);
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
        size: 0,
        tar_size: meter.size,
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

/// Counts, digests and copies what is read.
struct Meter<R, W> {
    source: R,
    copy: W,
    size: u64,
    /// Bytes that may be read until somebody allows more.
    allowance: Rc<Cell<u64>>,
    hash: Sha256,
    /// Zero bytes at the end so far: a whole archive ends with blocks of them.
    zeros: u64,
}

impl<R, W> Meter<R, W> {
    fn new(source: R, copy: W, allowance: Rc<Cell<u64>>) -> Self {
        Self {
            source,
            copy,
            size: 0,
            allowance,
            hash: Sha256::new(),
            zeros: 0,
        }
    }
}

impl<R: Read, W: Write> Read for Meter<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        let bytes = &buffer[..count];
        self.size += count as u64;
        let left = self.allowance.get().checked_sub(count as u64);
        let left = left.ok_or_else(|| io::Error::other("a header is larger than 1 MiB"))?;
        self.allowance.set(left);
        self.hash.update(bytes);
        self.copy.write_all(bytes)?;
        let tail = bytes.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        self.zeros = if tail == count as u64 {
            self.zeros + tail
        } else {
            tail
        };
        Ok(count)
    }
}
