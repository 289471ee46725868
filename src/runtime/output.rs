//! What a program that `exec` runs prints: as much of it as is kept, and for as long as anybody waits for it.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::{ContainerId, ExecSpec, RuntimeError};

/// Most of each stream that is kept, bytes.
pub const KEPT: usize = 16 << 20;
/// How long the rest of the output may take when its program has ended: what that left running may hold it for ever.
pub const REST: Duration = Duration::from_millis(100);

/// What an `exec` does, for messages.
#[must_use]
pub fn action(container: &ContainerId, spec: &ExecSpec) -> String {
    let program = spec.args.first().map_or("", String::as_str);
    format!("running {program:?} in container {container}")
}

/// The first bytes of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output(Vec<u8>);

impl Output {
    /// Keeps what there is room for.
    pub fn add(&mut self, piece: &[u8]) {
        let room = KEPT.saturating_sub(self.0.len()).min(piece.len());
        self.0.extend_from_slice(&piece[..room]);
    }

    /// Reads a stream to its end, so that its writer never has to wait.
    ///
    /// # Errors
    /// Those of the stream; what came before stays.
    pub async fn read(&mut self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let room = KEPT.saturating_sub(self.0.len()) as u64;
        (&mut from).take(room).read_to_end(&mut self.0).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
        Ok(())
    }

    /// What was kept.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads both streams while their program runs, and a little longer. Gives what `ended` gave, and what was kept.
pub async fn gather<T>(
    stdout: impl AsyncRead + Unpin,
    stderr: impl AsyncRead + Unpin,
    ended: impl Future<Output = T>,
) -> (T, Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Output::default(), Output::default());
    let end = {
        let mut streams = pin!(async { tokio::join!(out.read(stdout), err.read(stderr)) });
        let mut ended = pin!(ended);
        tokio::select! {
            // A stream that breaks is one that ends.
            biased;
            _ = &mut streams => ended.await,
            end = &mut ended => {
                let _ = timeout(REST, &mut streams).await;
                end
            }
        }
    };
    (end, out.into_bytes(), err.into_bytes())
}

/// The error of a program that ran longer than it may.
#[must_use]
pub fn too_long(engine: &'static str, action: String, spec: &ExecSpec) -> RuntimeError {
    let text = format!("it ran longer than {:?} and was killed", spec.time_limit);
    RuntimeError::engine(engine, action, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn the_beginning_is_kept_and_the_rest_is_read_all_the_same() {
        let mut output = Output::default();
        output.add(b"ab");
        let long = vec![b'x'; KEPT + 5];
        output.read(&*long).await.expect("memory is readable");
        output.add(b"more");
        let kept = output.into_bytes();
        assert_eq!((kept.len(), &kept[..3]), (KEPT, &b"abx"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_program_left_running_does_not_hold_the_answer() {
        let (mut held, stdout) = tokio::io::duplex(64);
        held.write_all(b"before").await.expect("there is room");
        let ended = async { 3 };
        let (end, out, err) = gather(stdout, &b"error"[..], ended).await;
        assert_eq!(
            (end, &out[..], &err[..]),
            (3, &b"before"[..], &b"error"[..])
        );
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_may_close_its_output_and_run_on() {
        let ended = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            7
        };
        let (end, out, _) = gather(&b"all"[..], &b""[..], ended).await;
        assert_eq!((end, &out[..]), (7, &b"all"[..]));
    }
}
