//! The log of a container in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use crate::runtime::log::News;
use crate::runtime::{LogPart, Result};

/// The newest bytes of what a container has printed.
#[derive(Debug)]
pub(super) struct Log {
    kept: VecDeque<u8>,
    /// How many are kept at most.
    limit: usize,
    /// How many were ever written.
    written: u64,
}

impl Log {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            kept: VecDeque::new(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            written: 0,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        let newest = &bytes[bytes.len().saturating_sub(self.limit)..];
        let excess = (self.kept.len() + newest.len()).saturating_sub(self.limit);
        self.kept.drain(..excess);
        self.kept.extend(newest);
    }

    /// The last `length` bytes, or all.
    pub(super) fn tail(&self, length: usize) -> Vec<u8> {
        let first = self.kept.len().saturating_sub(length);
        self.kept.range(first..).copied().collect()
    }

    /// How many bytes were written until now: the place for [`Self::since`] to begin from.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// What was written after a place; a gap first where the first of it is no longer kept.
    pub(super) fn since(&self, place: u64) -> Vec<LogPart> {
        let wanted = usize::try_from(self.written - place).unwrap_or(usize::MAX);
        let mut parts = Vec::new();
        if wanted > self.kept.len() {
            parts.push(LogPart::Gap);
        }
        let bytes = self.tail(wanted);
        if !bytes.is_empty() {
            parts.push(LogPart::Bytes(bytes));
        }
        parts
    }
}

/// Reads a log that is still written, also when its container is gone.
pub(super) struct Follower {
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) place: u64,
}

#[async_trait]
impl News for Follower {
    async fn next(&mut self) -> Result<Vec<LogPart>> {
        let log = self.log.lock().expect("no panic while held");
        let parts = log.since(self.place);
        self.place = log.written();
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept_and_what_went_before_it_was_read_is_a_gap() {
        let mut log = Log::new(8);
        log.write(b"0123");
        let place = log.written();
        assert_eq!(log.since(place), []);
        log.write(b"4567");
        let more = LogPart::Bytes(b"4567".to_vec());
        assert_eq!(log.since(place), [more]);
        log.write(b"89");
        assert_eq!(
            (log.tail(99), log.tail(3)),
            (b"23456789".to_vec(), b"789".to_vec())
        );
        let rest = LogPart::Bytes(b"456789".to_vec());
        assert_eq!(log.since(place), [rest]);
        log.write(b"abcdefghijklm");
        let newest = LogPart::Bytes(b"fghijklm".to_vec());
        assert_eq!(log.since(place), [LogPart::Gap, newest]);
    }
}
