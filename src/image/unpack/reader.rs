//! Reads tar: ustar, GNU and pax, in bounded memory, one entry after the other.
//!
//! The crate `tar` parses header blocks; the walk is ours, for it would read names and pax records of any length.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{EntryType, Header, PaxExtensions};

use super::{read_error, read_full};
use crate::image::ImageError;

const BLOCK: u64 = 512;
/// Bound for long names and pax records, which are read as a whole.
const MAX_EXTENSION: u64 = 1 << 20;
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A file with `size` bytes to read.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink(PathBuf),
    /// Another name for an entry.
    HardLink(PathBuf),
    /// A named pipe.
    Fifo,
    /// A character device, major and minor number.
    Char(u32, u32),
    /// A block device, major and minor number.
    Block(u32, u32),
}

/// One entry; its bytes are read from it.
pub(crate) struct Entry<'a, R: Read> {
    /// Its name, as it stands in the archive.
    pub(crate) path: PathBuf,
    /// What it makes.
    pub(crate) kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Time of last change, seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Extended attributes by name.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Bytes to read.
    pub(crate) size: u64,
    tar: &'a mut TarReader<R>,
}

impl<R: Read> Read for Entry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tar.read_data(buffer)
    }
}

impl<R: Read> Entry<'_, R> {
    /// Name of the archive, for errors.
    pub(crate) fn archive(&self) -> &str {
        &self.tar.what
    }
}

/// The walk over an archive.
pub(crate) struct TarReader<R> {
    source: R,
    what: String,
    /// Bytes of the present entry not read yet, and the padding after them.
    left: u64,
    padding: u64,
    saw_end: bool,
}

/// What extension headers say about the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Reads from the start of an uncompressed archive; `what` names it in errors.
    pub(crate) fn new(source: R, what: &str) -> Self {
        Self {
            source,
            what: what.to_owned(),
            left: 0,
            padding: 0,
            saw_end: false,
        }
    }

    /// Whether the mark of the archive's end has been read.
    pub(crate) fn saw_end(&self) -> bool {
        self.saw_end
    }

    /// The next entry; what was not read of the last one is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry<'_, R>>, ImageError> {
        let mut extension = Extension::default();
        let mut extended = false;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                if extended {
                    return Err(ImageError::Truncated(self.what.clone()));
                }
                return Ok(None);
            };
            let size = header.entry_size().map_err(|e| self.bad(e))?;
            self.begin(size);
            match header.entry_type() {
                EntryType::XGlobalHeader => {}
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    self.pax(&records, &mut extension)?;
                    extended = true;
                }
                EntryType::GNULongName => {
                    extension.path = Some(trim_nul(self.extension(size)?));
                    extended = true;
                }
                EntryType::GNULongLink => {
                    extension.link = Some(trim_nul(self.extension(size)?));
                    extended = true;
                }
                kind => return self.entry(&header, kind, extension).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        extension: Extension,
    ) -> Result<Entry<'_, R>, ImageError> {
        let path = extension
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extension
            .link
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
            .map(to_path);
        let path = to_path(path);
        let device = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
        let numbers = (device(header.device_major()), device(header.device_minor()));
        let target = || {
            link.clone()
                .filter(|link| !link.as_os_str().is_empty())
                .ok_or_else(|| {
                    ImageError::malformed(
                        &self.what,
                        format!("link {} has no target", path.display()),
                    )
                })
        };
        let is_folder_name = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let kind = match kind {
            // Archives older than ustar mark folders by their name only.
            EntryType::Regular | EntryType::Continuous if is_folder_name => EntryKind::Folder,
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Folder,
            EntryType::Symlink => EntryKind::Symlink(target()?),
            EntryType::Link => EntryKind::HardLink(target()?),
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => EntryKind::Char(numbers.0, numbers.1),
            EntryType::Block => EntryKind::Block(numbers.0, numbers.1),
            other => {
                return Err(ImageError::Unsupported {
                    what: format!("{} in {}", path.display(), self.what),
                    kind: if other == EntryType::GNUSparse {
                        "sparse file (pack it without --sparse)".to_owned()
                    } else {
                        format!("tar entry {:?}", char::from(other.as_byte()))
                    },
                });
            }
        };
        // Only files have bytes; some archivers give links the size of what they link to.
        let size = match kind {
            EntryKind::File => extension.size.unwrap_or(self.left),
            _ => 0,
        };
        self.begin(size);
        let id = |given: Option<u64>, own: io::Result<u64>| {
            let id = given.map_or(own, Ok).map_err(|e| self.bad(e))?;
            // The last number means "leave as it is" to Linux, not an owner.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| {
                    self.bad(format!("{} belongs to user or group {id}", path.display()))
                })
        };
        let uid = id(extension.uid, header.uid())?;
        let gid = id(extension.gid, header.gid())?;
        let mode = header.mode().map_err(|e| self.bad(e))? & 0o7777;
        let mtime = match extension.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = header.mtime().map_err(|e| self.bad(e))?;
                (i64::try_from(seconds).unwrap_or(0), 0)
            }
        };
        Ok(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: extension.xattrs,
            size,
            tar: self,
        })
    }

    /// The next header block, or `None` at the end, marked or not.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut block = [0; BLOCK as usize];
        match self.fill(&mut block)? {
            0 => return Ok(None),
            512 => {}
            _ => return Err(ImageError::Truncated(self.what.clone())),
        }
        if block.iter().all(|byte| *byte == 0) {
            self.saw_end = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * u32::from(b' ');
        if header.cksum().map_err(|e| self.bad(e))? != sum {
            return Err(self.bad("a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }

    fn skip_rest(&mut self) -> Result<(), ImageError> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())
            .map_err(|e| read_error(&self.what, e))?;
        if skipped < rest {
            return Err(ImageError::Truncated(self.what.clone()));
        }
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        if size > MAX_EXTENSION {
            return Err(self.bad(format!("an extended header has {size} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(size).expect("it is at most 1 MiB")];
        let n = self.fill(&mut bytes)?;
        if n < bytes.len() {
            return Err(ImageError::Truncated(self.what.clone()));
        }
        self.left = 0;
        Ok(bytes)
    }

    fn pax(&self, records: &[u8], extension: &mut Extension) -> Result<(), ImageError> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|e| self.bad(e))?;
            let value = record.value_bytes();
            let key = record.key().map_err(|e| self.bad(e))?;
            let number = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| self.bad(format!("pax record {key} is not a number")))
            };
            match key {
                "path" => extension.path = Some(value.to_vec()),
                "linkpath" => extension.link = Some(value.to_vec()),
                "size" => extension.size = Some(number()?),
                "uid" => extension.uid = Some(number()?),
                "gid" => extension.gid = Some(number()?),
                "mtime" => {
                    extension.mtime = Some(
                        time(value).ok_or_else(|| self.bad("pax record mtime is not a time"))?,
                    )
                }
                sparse if sparse.starts_with("GNU.sparse.") => {
                    return Err(ImageError::Unsupported {
                        what: self.what.clone(),
                        kind: "archive with sparse files (pack it without --sparse)".to_owned(),
                    });
                }
                other => {
                    if let Some(name) = other.strip_prefix(XATTR_PREFIX) {
                        extension.xattrs.insert(name.to_owned(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ImageError> {
        read_full(&mut self.source, buffer).map_err(|e| read_error(&self.what, e))
    }

    fn bad(&self, reason: impl ToString) -> ImageError {
        ImageError::malformed(&self.what, reason)
    }
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// `seconds[.fraction]`, perhaps negative, as seconds and nanoseconds after them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some((seconds, nanoseconds));
    }
    Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_may_be_negative_and_broken() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.-5"), None);
        assert_eq!(time(b"x"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
            let mut tar = TarReader::new(bytes.as_slice(), "noise");
            while let Ok(Some(_)) = tar.next_entry() {}
        }
    }
}
