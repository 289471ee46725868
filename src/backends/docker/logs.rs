//! The log that dockerd keeps.

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;

use super::{Docker, connect, known, not_found};
use crate::runtime::log::{self, News, Tail};
use crate::runtime::{ContainerId, LogPart, Result, RuntimeError};

impl Docker {
    pub(super) async fn read_log(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        known(id)?;
        // dockerd counts lines, of which each has a byte at least.
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&limit.max(1).to_string())
            .build();
        let read = async {
            let mut tail = Tail::new(limit);
            let mut pieces = self.client.api.logs(&id.0, Some(options));
            while let Some(piece) = pieces.try_next().await? {
                tail.push(&bytes_of(piece));
            }
            Ok::<_, Error>(tail.into_bytes())
        };
        let read = self
            .client
            .ask(format!("reading the log of container {id}"), read)
            .await;
        read.map_err(not_found(id))
    }

    /// By asking again and again for the last seconds: dockerd's own following doubles lines at a rotation (seen with 20.10).
    pub(super) async fn follow_log(
        &self,
        id: &ContainerId,
        tail: usize,
        to: mpsc::Sender<LogPart>,
    ) -> Result<()> {
        known(id)?;
        let seen = self.entries(id, 0).await.map_err(not_found(id))?;
        let mut first = Tail::new(tail);
        seen.iter().for_each(|entry| first.push(&entry.bytes));
        let news = LastSeconds {
            docker: self,
            id,
            seen,
        };
        log::hand_on(first.into_bytes(), news, self.wait_for_end(id), to).await
    }

    /// Each write of the container since a second, as dockerd keeps it.
    async fn entries(&self, id: &ContainerId, since: i32) -> Result<Vec<Entry>> {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .build();
        let pieces = self.client.api.logs(&id.0, Some(options));
        let entries = pieces.map_ok(|piece| Entry::read(&bytes_of(piece)));
        let read = self.client.ask(
            format!("following the log of container {id}"),
            entries.try_collect(),
        );
        read.await
    }
}

/// A log that is looked at again and again.
struct LastSeconds<'a> {
    docker: &'a Docker,
    id: &'a ContainerId,
    /// The writes of the last seconds at least.
    seen: Vec<Entry>,
}

#[async_trait]
impl News for LastSeconds<'_> {
    async fn next(&mut self) -> Result<Vec<LogPart>> {
        let since = keep_last_seconds(&mut self.seen);
        let now = match self.docker.entries(self.id, since).await {
            // It is being removed.
            Err(error) if connect::status(&error) == Some(409) => {
                return Err(RuntimeError::NotFound(self.id.clone()));
            }
            now => now.map_err(not_found(self.id))?,
        };
        // Nothing since the last write of a log that was rotated away meanwhile.
        if now.is_empty() {
            return Ok(Vec::new());
        }
        let parts = log::unseen(&self.seen, &now, text);
        self.seen = now;
        Ok(parts)
    }
}

/// Lets go of all but the writes of the last two seconds; gives the first of these seconds.
fn keep_last_seconds(seen: &mut Vec<Entry>) -> i32 {
    let last = seen.last().and_then(Entry::second).unwrap_or(0);
    let since = (last - 1).max(0);
    seen.retain(|entry| entry.second().is_some_and(|second| second >= since));
    since
}

fn text(entries: &[Entry]) -> Vec<u8> {
    entries.iter().flat_map(|it| it.bytes.clone()).collect()
}

/// A piece's bytes. Containers of the Python agent have a terminal, which puts a carriage return before each line end.
fn bytes_of(piece: LogOutput) -> Vec<u8> {
    match piece {
        LogOutput::Console { message } => match message.strip_suffix(b"\r\n") {
            Some(line) => [line, b"\n"].concat(),
            None => message.into(),
        },
        other => other.into_bytes().into(),
    }
}

/// One write, with its time in dockerd's form, to the nanosecond.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    time: Vec<u8>,
    bytes: Vec<u8>,
}

impl Entry {
    fn read(piece: &[u8]) -> Self {
        let end = piece.iter().position(|byte| *byte == b' ');
        let (time, bytes) = end.map_or((&[][..], piece), |end| (&piece[..end], &piece[end + 1..]));
        Self {
            time: time.to_vec(),
            bytes: bytes.to_vec(),
        }
    }

    /// The second of the write since 1970, UTC.
    fn second(&self) -> Option<i32> {
        let text = std::str::from_utf8(&self.time).ok()?;
        let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        // The year begins in March here, so that its last day is the one that may be missing.
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
        let seconds = (days - 719_469) * 86_400 + hour * 3_600 + minute * 60 + second;
        i32::try_from(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_told_from_its_time() {
        let entry = Entry::read(b"2026-11-26T11:00:00.000000000Z two words\n");
        assert_eq!(entry.time, b"2026-11-26T11:00:00.000000000Z");
        assert_eq!(entry.bytes, b"two words\n");
        assert_eq!(entry.second(), Some(1_795_690_800));
        assert_eq!(Entry::read(b"odd").bytes, b"odd");
        assert_eq!(Entry::read(b"odd").second(), None);
        for (time, second) in [
            ("1970-01-01T00:00:00.5Z x", 0),
            ("2024-03-01T00:00:01Z x", 1_709_251_201),
        ] {
            assert_eq!(
                Entry::read(time.as_bytes()).second(),
                Some(second),
                "{time}"
            );
        }
    }

    #[test]
    fn what_is_new_is_told_by_the_times_of_writes() {
        let entry =
            |second: u32| Entry::read(format!("2026-11-26T11:00:{second:02}.0Z x").as_bytes());
        let all: Vec<Entry> = (0..10).map(entry).collect();
        let new = |from: usize| LogPart::Bytes(b"x".repeat(10 - from));
        let news = |seen: &[Entry], now: &[Entry]| log::unseen(seen, now, text);
        assert_eq!(news(&all[..4], &all), [new(4)]);
        assert_eq!(news(&all, &all), []);
        // The oldest were rotated away meanwhile.
        assert_eq!(news(&all[..6], &all[4..]), [new(6)]);
        assert_eq!(news(&all[..3], &all[4..]), [LogPart::Gap, new(4)]);
        assert_eq!(news(&[], &all), [new(0)]);
        let mut seen = all;
        assert_eq!(keep_last_seconds(&mut seen), 1_795_690_808);
        assert_eq!(seen.len(), 2);
        assert_eq!(keep_last_seconds(&mut Vec::new()), 0);
    }
}
