//! Logs that are followed while they are written.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use backendai_monitor::follow::LogPart;
use backendai_monitor::follow::LogReader;
use tokio::sync::mpsc;

use super::{ContainerId, ContainerRuntime, ExitStatus, Result, RuntimeError};

/// How long after a look at a log the next one is taken.
const PAUSE: Duration = Duration::from_millis(200);
/// More than any log is allowed to grow to, less than memory.
const WHOLE: usize = 256 << 20;

/// [`ContainerRuntime::follow`] by looking at the whole log again and again. Exact while the log is kept whole; once its
/// beginning goes away, what is new is told from what is known by their overlap, so that a log which repeats itself is
/// not counted exactly.
pub(super) async fn poll<R: ContainerRuntime + ?Sized>(
    runtime: &R,
    id: &ContainerId,
    tail: usize,
    to: mpsc::Sender<LogPart>,
) -> Result<()> {
    let mut seen = runtime.logs(id, WHOLE).await?;
    let before = seen.len().saturating_sub(tail);
    let mut parts = vec![LogPart::Bytes(seen[before..].to_vec())];
    let mut end = pin!(runtime.wait(id));
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
            end = &mut end => is_over(end)?,
            () = tokio::time::sleep(PAUSE) => false,
            () = to.closed() => return Ok(()),
        };
        let now = match runtime.logs(id, WHOLE).await {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let known = overlap(&seen, &now);
        if known == 0 && !seen.is_empty() {
            parts.push(LogPart::Gap);
        }
        if known < now.len() {
            parts.push(LogPart::Bytes(now[known..].to_vec()));
        }
        seen = now;
    }
}

/// [`ContainerRuntime::follow`] for engines whose log is the files of [`backendai_monitor::log`] in `folder`; exact.
/// `end` is the container's end, before which all its output must be in the log.
///
/// # Errors
/// When the log cannot be read, and what `end` fails with.
pub async fn follow_files(
    folder: PathBuf,
    tail: usize,
    end: impl Future<Output = Result<ExitStatus>>,
    to: mpsc::Sender<LogPart>,
) -> Result<()> {
    let broken = |error: io::Error| RuntimeError::Engine {
        engine: "log",
        action: format!("following {}", folder.display()),
        source: error.into(),
    };
    let place = folder.clone();
    let (reader, first) = blocking(move || LogReader::open(&place, tail))
        .await
        .map_err(broken)?;
    let reader = Arc::new(Mutex::new(reader));
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
            end = &mut end => is_over(end)?,
            () = tokio::time::sleep(PAUSE) => false,
            () = to.closed() => return Ok(()),
        };
        let shared = Arc::clone(&reader);
        let read = blocking(move || shared.lock().expect("no panic while held").read());
        parts = read.await.map_err(broken)?;
    }
}

/// A container that is removed has come to its end too.
fn is_over(end: Result<ExitStatus>) -> Result<bool> {
    match end {
        Ok(_) | Err(RuntimeError::NotFound(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// How much of `now` was in `seen` already: all of it, or the longest end of `seen` that `now` begins with.
fn overlap(seen: &[u8], now: &[u8]) -> usize {
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
    for byte in seen {
        if length == now.len() {
            length = borders.last().copied().unwrap_or(0);
        }
        while length > 0 && now.get(length) != Some(byte) {
            length = borders[length - 1];
        }
        length += usize::from(now.get(length) == Some(byte));
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

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
