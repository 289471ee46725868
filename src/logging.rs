//! The log: lines for people on stderr, and JSON lines in a file that is rotated by size.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogConfig;

/// Starts logging for the process.
///
/// # Errors
/// When the file cannot be opened.
pub fn start(config: &LogConfig) -> io::Result<()> {
    let level = if config.debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    // Libraries report each of their steps at debug level; the agent's own steps are what is asked for.
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse_lossy(format!("backendai_agent={level},zmtp={level}"));
    let file = match &config.file {
        Some(path) => Some(Mutex::new(RotatingFile::open(
            path.clone(),
            config.file_bytes,
            config.file_count,
        )?)),
        None => None,
    };
    let file = file.map(|file| fmt::layer().json().with_writer(file));
    // A second start in one process keeps the first one's log.
    let _already = tracing_subscriber::registry()
        .with(filter)
        .with(
            fmt::layer()
                .with_ansi(io::stderr().is_terminal())
                .with_writer(io::stderr),
        )
        .with(file)
        .try_init();
    Ok(())
}

/// A file that, when it has grown, is renamed to `….1`, that one to `….2`, and so on; the oldest goes.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    limit: u64,
    keep: usize,
    file: File,
    size: u64,
}

impl RotatingFile {
    /// Opens the file for appending. It grows to at most `limit` bytes (or one write) and `keep` old ones are kept.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: PathBuf, limit: u64, keep: usize) -> io::Result<Self> {
        let describe = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("log file {}: {error}", path.display()),
            )
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(describe)?;
        let size = file.metadata().map_err(describe)?.len();
        Ok(Self {
            path,
            limit,
            keep,
            file,
            size,
        })
    }

    fn old(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            let from = self.old(number);
            if from.exists() {
                std::fs::rename(from, self.old(number + 1))?;
            }
        }
        if self.keep == 0 {
            self.file.set_len(0)?;
        } else {
            std::fs::rename(&self.path, self.old(1))?;
            self.file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
        }
        self.size = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = data.len() as u64;
        if self.size > 0 && self.size + length > self.limit {
            self.rotate()?;
        }
        self.file.write_all(data)?;
        self.size += length;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_rotated_by_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.log");
        let mut file = RotatingFile::open(path.clone(), 10, 2).expect("a file");
        for line in ["one 12345\n", "two 12345\n", "three 123\n", "four\n"] {
            file.write_all(line.as_bytes()).expect("a write");
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("agent.log").as_deref(), Some("four\n"));
        assert_eq!(read("agent.log.1").as_deref(), Some("three 123\n"));
        assert_eq!(read("agent.log.2").as_deref(), Some("two 12345\n"));
        assert_eq!(read("agent.log.3"), None);
    }

    #[test]
    fn an_existing_log_is_continued() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.log");
        std::fs::write(&path, "old\n").expect("a file");
        let mut file = RotatingFile::open(path.clone(), 100, 2).expect("a file");
        file.write_all(b"new\n").expect("a write");
        let text = std::fs::read_to_string(path).expect("a file");
        assert_eq!(text, "old\nnew\n");
    }
}
