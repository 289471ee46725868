//! The container log: the bytes of standard output and error in the order of arrival, in at most two files.
//!
//! Both streams of a container share one pipe, so Linux itself keeps their order. `log` grows to half of the limit,
//! is then renamed to `log.1` (an older `log.1` is lost) and begins anew: the newest half is always there.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Smallest half: a limit below twice this is raised, or every line would rotate.
const SMALLEST_HALF: u64 = 4096;

/// The writing end of a log.
#[derive(Debug)]
pub struct LogWriter {
    folder: PathBuf,
    file: File,
    size: u64,
    half: u64,
}

impl LogWriter {
    /// Opens the log in `folder` to append; it keeps at most `limit` bytes, and never less than 8 KiB.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))?;
        let size = file.metadata()?.len();
        Ok(Self {
            folder: folder.to_owned(),
            file,
            size,
            half: (limit / 2).max(SMALLEST_HALF),
        })
    }

    /// Appends bytes; rotates when a file is full.
    ///
    /// # Errors
    /// When the disk refuses; the bytes are lost then.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.size >= self.half {
                self.rotate()?;
            }
            let room = usize::try_from(self.half - self.size).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let current = self.folder.join("log");
        fs::rename(&current, self.folder.join("log.1"))?;
        self.file = File::options().create(true).append(true).open(&current)?;
        self.size = 0;
        Ok(())
    }
}

/// Reads the last `limit` bytes of the log in `folder`; empty when nothing was ever written.
///
/// # Errors
/// When a file cannot be read.
pub fn tail(folder: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let newer = tail_of(&folder.join("log"), limit)?;
    let left = limit - newer.len();
    if left == 0 {
        return Ok(newer);
    }
    let mut all = tail_of(&folder.join("log.1"), left)?;
    all.extend(newer);
    Ok(all)
}

fn tail_of(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit as u64)))?;
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_log_that_was_never_written_is_empty() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert!(tail(dir.path(), 100).expect("tail").is_empty());
    }

    #[test]
    fn a_full_log_keeps_the_newest_half_at_least() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut log = LogWriter::open(dir.path(), 16 << 10).expect("open");
        let all: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for part in all.chunks(777) {
            log.write(part).expect("write");
        }
        let kept = tail(dir.path(), usize::MAX >> 1).expect("tail");
        assert!(
            kept.len() <= 16 << 10 && kept.len() >= 8 << 10,
            "{}",
            kept.len()
        );
        assert!(all.ends_with(&kept));
    }

    #[test]
    fn a_reopened_log_goes_on_where_it_was() {
        let dir = tempfile::tempdir().expect("temp dir");
        for text in ["one ", "two"] {
            let mut log = LogWriter::open(dir.path(), 1 << 20).expect("open");
            log.write(text.as_bytes()).expect("write");
        }
        assert_eq!(tail(dir.path(), 100).expect("tail"), b"one two");
    }

    proptest! {
        #[test]
        fn the_tail_is_the_end_of_what_was_written(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..12),
            limit in 0_usize..9000,
        ) {
            let dir = tempfile::tempdir().expect("temp dir");
            let mut log = LogWriter::open(dir.path(), 0).expect("open");
            for part in &parts {
                log.write(part).expect("write");
            }
            let all = parts.concat();
            let got = tail(dir.path(), limit).expect("tail");
            prop_assert!(all.ends_with(&got));
            prop_assert!(got.len() >= limit.min(all.len()).min(4096));
        }
    }
}
