//! Logs that are followed while they are written.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
pub use backendai_monitor::follow::LogPart;
use backendai_monitor::follow::LogReader;
use tokio::sync::mpsc;

use super::{ContainerId, ContainerRuntime, ExitStatus, Result, RuntimeError};

/// How long after a look at a log the next one is taken.
const PAUSE: Duration = Duration::from_millis(200);
/// More than any log is allowed to grow to, less than memory.
const WHOLE: usize = 256 << 20;

/// How long a logger may take to write what a dead container left in its pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Waits until a log holds all that its dead container printed.
pub async fn complete(folder: &Path) {
    let complete = async {
        while let Ok(false) = backendai_monitor::is_complete(folder) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, complete).await;
}

/// Tells what is new in a log.
#[async_trait]
pub trait News: Send {
    /// What came since the last question. [`RuntimeError::NotFound`] when the log is gone with its container.
    async fn next(&mut self) -> Result<Vec<LogPart>>;
}

/// Hands on a log: `first`, then what is new until the container ends or is removed, or `to` is closed. `end` is the
/// container's end, before which all its output must be in the log.
///
/// # Errors
/// What `news` and `end` fail with, other than [`RuntimeError::NotFound`].
pub async fn hand_on(
    first: Vec<u8>,
    mut news: impl News,
    end: impl Future<Output = Result<ExitStatus>>,
    to: mpsc::Sender<LogPart>,
) -> Result<()> {
    let mut parts = vec![LogPart::Bytes(first)];
    let mut end = pin!(end);
    let mut ended = false;
    loop {
        for part in parts.drain(..) {
            if to.send(part).await.is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
        ended = tokio::select! {
            end = &mut end => known(end).map(|_| true)?,
            () = tokio::time::sleep(PAUSE) => false,
            () = to.closed() => return Ok(()),
        };
        let Some(new) = known(news.next().await)? else {
            return Ok(());
        };
        parts = new;
    }
}

/// A container that is removed has come to its end, and its log too.
fn known<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(RuntimeError::NotFound(_)) => Ok(None),
        answer => answer.map(Some),
    }
}

/// [`ContainerRuntime::follow`] by looking at the whole log again and again. Exact while the log is kept whole; once its
/// beginning goes away, what is new is told from what is known by their overlap, so that a log which repeats itself is
/// not counted exactly.
pub(super) async fn poll<R: ContainerRuntime + ?Sized>(
    runtime: &R,
    id: &ContainerId,
    tail: usize,
    to: mpsc::Sender<LogPart>,
) -> Result<()> {
    let seen = runtime.logs(id, WHOLE).await?;
    let first = seen[seen.len().saturating_sub(tail)..].to_vec();
    let news = Whole { runtime, id, seen };
    hand_on(first, news, runtime.wait(id), to).await
}

/// A log of which only the whole can be had.
struct Whole<'a, R: ?Sized> {
    runtime: &'a R,
    id: &'a ContainerId,
    seen: Vec<u8>,
}

#[async_trait]
impl<R: ContainerRuntime + ?Sized> News for Whole<'_, R> {
    async fn next(&mut self) -> Result<Vec<LogPart>> {
        let now = self.runtime.logs(self.id, WHOLE).await?;
        let parts = unseen(&self.seen, &now, <[u8]>::to_vec);
        self.seen = now;
        Ok(parts)
    }
}

/// [`ContainerRuntime::follow`] for engines whose log is the files of [`backendai_monitor::log`] in `folder`; exact.
/// `end` is as in [`hand_on`].
///
/// # Errors
/// When the log cannot be read, and what `end` fails with.
pub async fn follow_files(
    folder: PathBuf,
    tail: usize,
    end: impl Future<Output = Result<ExitStatus>>,
    to: mpsc::Sender<LogPart>,
) -> Result<()> {
    let place = folder.clone();
    let opened = blocking(&folder, move || LogReader::open(&place, tail)).await;
    let (reader, first) = opened?;
    let reader = Arc::new(Mutex::new(reader));
    hand_on(first, Files { folder, reader }, end, to).await
}

/// A log in files.
struct Files {
    folder: PathBuf,
    reader: Arc<Mutex<LogReader>>,
}

#[async_trait]
impl News for Files {
    async fn next(&mut self) -> Result<Vec<LogPart>> {
        let reader = Arc::clone(&self.reader);
        let read = move || reader.lock().expect("no panic while held").read();
        blocking(&self.folder, read).await
    }
}

async fn blocking<T: Send + 'static>(
    folder: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let action = format!("following {}", folder.display());
    super::blocking("log", action, || Ok(work()?)).await
}

/// What is in `now` and not in `seen`, which is an earlier look at the same log; a gap where the two have nothing in
/// common.
pub fn unseen<T: PartialEq>(
    seen: &[T],
    now: &[T],
    text: impl FnOnce(&[T]) -> Vec<u8>,
) -> Vec<LogPart> {
    let known = overlap(seen, now);
    let mut parts = Vec::new();
    if known == 0 && !seen.is_empty() {
        parts.push(LogPart::Gap);
    }
    if known < now.len() {
        parts.push(LogPart::Bytes(text(&now[known..])));
    }
    parts
}

/// How much of `now` was in `seen` already: all of it, or the longest end of `seen` that `now` begins with.
fn overlap<T: PartialEq>(seen: &[T], now: &[T]) -> usize {
    if now.starts_with(seen) {
        return seen.len();
    }
    // Knuth, Morris and Pratt: for each place in `now`, the longest proper beginning that ends there too.
    let mut borders = vec![0; now.len()];
    let mut length = 0;
    for at in 1..now.len() {
        while length > 0 && now[at] != now[length] {
            length = borders[length - 1];
        }
        length += usize::from(now[at] == now[length]);
        borders[at] = length;
    }
    let mut length = 0;
    for item in seen {
        if length == now.len() {
            length = borders.last().copied().unwrap_or(0);
        }
        while length > 0 && now.get(length) != Some(item) {
            length = borders[length - 1];
        }
        length += usize::from(now.get(length) == Some(item));
    }
    length
}

/// The last bytes of what comes.
#[derive(Clone, Debug)]
pub struct Tail {
    limit: usize,
    bytes: Vec<u8>,
}

impl Tail {
    /// Keeps so many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
        }
    }

    /// More comes.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() > self.limit.saturating_mul(2).max(1 << 16) {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
    }

    /// What was kept.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes
            .split_off(self.bytes.len().saturating_sub(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_came_is_kept_however_it_came() {
        for size in [1, 7, 1000, 200_000] {
            let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
            for limit in [0, 1, 5000, 10_000_000] {
                let mut tail = Tail::new(limit);
                text.chunks(size).for_each(|piece| tail.push(piece));
                let start = text.len().saturating_sub(limit);
                assert_eq!(tail.into_bytes(), text[start..]);
            }
        }
    }

    #[test]
    fn what_is_new_is_told_from_what_is_known() {
        for (seen, now, wanted) in [
            ("", "", 0),
            ("", "abc", 0),
            ("abc", "abc", 3),
            ("abc", "abcde", 3),
            // The beginning has gone away.
            ("line 1\nline 2\n", "line 2\nline 3\n", 7),
            ("aab", "abaa", 2),
            ("xaaa", "aaab", 3),
            // Nothing that was known is there any more.
            ("abc", "xyz", 0),
            ("abcabc", "abc", 3),
        ] {
            assert_eq!(
                overlap(seen.as_bytes(), now.as_bytes()),
                wanted,
                "{seen} {now}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_written_until_the_end_is_followed_also_when_nobody_waits_between() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log =
            backendai_monitor::log::LogWriter::open(folder.path(), 1 << 20).expect("a log");
        log.write(b"before\n").expect("written");
        let (sender, mut parts) = mpsc::channel(4);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let status = async {
            let _ = ended.await;
            Ok(ExitStatus {
                code: 0,
                oom_killed: false,
            })
        };
        let following = follow_files(folder.path().to_owned(), 3, status, sender);
        let writing = async {
            assert_eq!(parts.recv().await, Some(LogPart::Bytes(b"re\n".to_vec())));
            log.write(b"after\n").expect("written");
            assert_eq!(
                parts.recv().await,
                Some(LogPart::Bytes(b"after\n".to_vec()))
            );
            log.write(b"last\n").expect("written");
            let _ = end.send(());
            assert_eq!(parts.recv().await, Some(LogPart::Bytes(b"last\n".to_vec())));
            assert_eq!(parts.recv().await, None);
        };
        let (followed, ()) = tokio::join!(following, writing);
        followed.expect("it ends with the container");
    }
}
