//! A look at each entry of a layer's tar, for those who hand the tar on and do not unpack it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::PathBuf;

use tar::EntryType;

use super::entry::clean;
use super::{Limits, broken};
use crate::image::error::{ImageError, Result};

/// Counts entries and bytes, and refuses paths that leave the root.
pub(super) struct Surveyor<'a> {
    what: &'a str,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// What hard links may point to.
    files: HashSet<PathBuf>,
    links: HashSet<PathBuf>,
}

impl<'a> Surveyor<'a> {
    pub(super) fn new(what: &'a str, limits: Limits) -> Self {
        Self {
            what,
            limits,
            bytes: 0,
            entries: 0,
            files: HashSet::new(),
            links: HashSet::new(),
        }
    }

    /// Bytes of all files so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Looks at one entry.
    pub(super) fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ImageError::TooManyEntries {
                what: self.what.to_owned(),
                limit: self.limits.entries,
            });
        }
        let raw = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&raw).into_owned();
        let path = clean(&raw).ok_or_else(|| ImageError::EscapesRoot(shown()))?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry)?;
            }
            EntryType::Link => self.hard_link(entry, &shown())?,
            EntryType::Symlink => {
                self.links.insert(path.clone());
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {}
            EntryType::Directory | EntryType::XGlobalHeader => return Ok(()),
            other => {
                return Err(ImageError::Unsupported {
                    what: format!("{}, entry {:?}", self.what, shown()),
                    why: format!("the tar entry type {:?}", other.as_byte() as char),
                });
            }
        }
        self.files.insert(path);
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let size = entry.size();
        if size > self.limits.bytes - self.bytes {
            return Err(ImageError::TooManyBytes {
                what: self.what.to_owned(),
                limit: self.limits.bytes,
            });
        }
        self.bytes += size;
        let read = io::copy(entry, &mut io::sink()).map_err(|error| broken(self.what, error))?;
        if read == size {
            return Ok(());
        }
        Err(ImageError::Truncated(self.what.to_owned()))
    }

    fn hard_link<R: Read>(&self, entry: &tar::Entry<'_, R>, shown: &str) -> Result<()> {
        let raw = entry.link_name_bytes().unwrap_or_default();
        let target = || String::from_utf8_lossy(&raw).into_owned();
        let Some(path) = clean(&raw) else {
            return Err(ImageError::LinkEscapesRoot {
                entry: shown.to_owned(),
                target: target(),
            });
        };
        // Below a symbolic link only unpacking tells what is there.
        let behind = |path: &PathBuf| {
            path.ancestors()
                .skip(1)
                .any(|part| self.links.contains(part))
        };
        if self.files.contains(&path) || behind(&path) {
            return Ok(());
        }
        Err(ImageError::BrokenLink {
            entry: shown.to_owned(),
            target: target(),
        })
    }
}
