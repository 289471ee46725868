//! The reading end of a log that is still written: every byte once and in order, across rotations.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Reads a log as it grows. It holds its file open: the file's number cannot be given to another meanwhile, so that a
/// rotation is always seen.
#[derive(Debug)]
pub struct LogReader {
    folder: PathBuf,
    /// The file that is read; absent as long as nothing was ever written.
    file: Option<File>,
}

/// A part of a log that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPart {
    /// What comes next.
    Bytes(Vec<u8>),
    /// Here something may be missing: it was rotated away before it was read.
    Gap,
}

/// The two files of a log, as they were at one moment.
struct Files {
    older: Option<File>,
    newest: Option<File>,
}

impl LogReader {
    /// Opens the log in `folder`; gives its last `tail` bytes, and later what comes after them.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn open(folder: &Path, tail: usize) -> io::Result<(Self, Vec<u8>)> {
        let Files { older, newest } = Files::open(folder)?;
        let mut bytes = Vec::new();
        let mut reader = Self {
            folder: folder.to_owned(),
            file: newest,
        };
        if let Some(file) = &mut reader.file {
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(size.saturating_sub(tail as u64)))?;
            file.read_to_end(&mut bytes)?;
        }
        let missing = tail.saturating_sub(bytes.len());
        if let Some(mut older) = older.filter(|_| missing > 0) {
            let size = older.metadata()?.len();
            older.seek(SeekFrom::Start(size.saturating_sub(missing as u64)))?;
            let mut all = Vec::new();
            older.read_to_end(&mut all)?;
            all.append(&mut bytes);
            bytes = all;
        }
        Ok((reader, bytes))
    }

    /// Reads what came since the last call; nothing is an empty list.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<LogPart>> {
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        loop {
            if let Some(file) = &mut self.file {
                file.read_to_end(&mut bytes)?;
            }
            let files = Files::open(&self.folder)?;
            match (&mut self.file, files.newest) {
                // Between the two steps of a rotation, or removed.
                (_, None) => break,
                (Some(file), Some(newest)) if same(file, &newest)? => break,
                (None, Some(newest)) => self.file = Some(files.older.unwrap_or(newest)),
                (Some(file), Some(newest)) => {
                    // Nothing is written to our file any more since there is a newer one: this is its end.
                    file.read_to_end(&mut bytes)?;
                    let next = match files.older {
                        Some(older) if !same(file, &older)? => {
                            give(&mut parts, &mut bytes);
                            parts.push(LogPart::Gap);
                            older
                        }
                        _ => newest,
                    };
                    self.file = Some(next);
                }
            }
        }
        give(&mut parts, &mut bytes);
        Ok(parts)
    }
}

fn give(parts: &mut Vec<LogPart>, bytes: &mut Vec<u8>) {
    if !bytes.is_empty() {
        parts.push(LogPart::Bytes(std::mem::take(bytes)));
    }
}

impl Files {
    /// Opens both; begins again when the log is rotated meanwhile.
    fn open(folder: &Path) -> io::Result<Self> {
        loop {
            let older = open(&folder.join("log.1"))?;
            let newest = open(&folder.join("log"))?;
            let again = open(&folder.join("log.1"))?;
            let still = match (&older, &again) {
                (None, None) => true,
                (Some(one), Some(other)) => same(one, other)?,
                _ => false,
            };
            if still {
                return Ok(Self { older, newest });
            }
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogWriter;

    fn lines(numbers: std::ops::Range<u32>) -> Vec<u8> {
        let lines = numbers.flat_map(|n| format!("line {n}\n").into_bytes());
        lines.collect()
    }

    /// What comes next, without a gap.
    fn more(reader: &mut LogReader) -> Vec<u8> {
        match reader.read().expect("read").as_slice() {
            [] => Vec::new(),
            [LogPart::Bytes(bytes)] => bytes.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_byte_comes_once_across_rotations() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::open(dir.path(), 8 << 10).expect("a log");
        log.write(b"before\n").expect("written");
        let (mut reader, first) = LogReader::open(dir.path(), 4).expect("opened");
        assert_eq!(first, b"ore\n");
        let mut all = Vec::new();
        for part in lines(0..5000).chunks(997) {
            log.write(part).expect("written");
            all.extend(more(&mut reader));
        }
        assert_eq!(all, lines(0..5000));
        assert!(more(&mut reader).is_empty());
    }

    #[test]
    fn a_log_that_repeats_itself_is_counted_exactly() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::open(dir.path(), 8 << 10).expect("a log");
        let (mut reader, _) = LogReader::open(dir.path(), 0).expect("opened");
        let mut count = 0;
        for _ in 0..3000 {
            log.write(b"tick\n").expect("written");
            count += more(&mut reader).len();
        }
        assert_eq!(count, 3000 * 5);
    }

    #[test]
    fn what_was_rotated_away_unread_is_a_gap_with_all_that_is_kept_around_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::open(dir.path(), 8 << 10).expect("a log");
        log.write(b"seen\n").expect("written");
        let (mut reader, _) = LogReader::open(dir.path(), 100).expect("opened");
        let flood = lines(0..10_000);
        log.write(&flood).expect("written");
        let parts = reader.read().expect("read");
        let [LogPart::Bytes(before), LogPart::Gap, LogPart::Bytes(after)] = parts.as_slice() else {
            panic!("{parts:?}");
        };
        assert!(flood.starts_with(before) && before.len() == (4 << 10) - 5);
        assert!(flood.ends_with(after) && after.len() >= 4 << 10);
        log.write(b"then\n").expect("written");
        assert_eq!(more(&mut reader), b"then\n");
    }

    #[test]
    fn a_log_may_begin_after_its_reader() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut reader, first) = LogReader::open(dir.path(), 100).expect("opened");
        assert!(first.is_empty() && more(&mut reader).is_empty());
        let mut log = LogWriter::open(dir.path(), 1 << 20).expect("a log");
        log.write(b"first\n").expect("written");
        assert_eq!(more(&mut reader), b"first\n");
    }

    #[test]
    fn the_tail_reaches_back_over_a_rotation() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::open(dir.path(), 8 << 10).expect("a log");
        let all = lines(0..600);
        log.write(&all).expect("written");
        let (_, tail) = LogReader::open(dir.path(), 4000).expect("opened");
        assert_eq!(tail.len(), 4000);
        assert!(all.ends_with(&tail));
    }

    #[test]
    fn a_log_that_is_removed_gives_its_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogWriter::open(dir.path(), 1 << 20).expect("a log");
        log.write(b"begun\n").expect("written");
        let (mut reader, _) = LogReader::open(dir.path(), 0).expect("opened");
        log.write(b"end\n").expect("written");
        std::fs::remove_file(dir.path().join("log")).expect("removed");
        assert_eq!(more(&mut reader), b"end\n");
    }
}
