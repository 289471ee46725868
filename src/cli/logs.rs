//! `backendai-agent logs`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::sync::mpsc;

use super::{CommonArgs, kernels, node};
use crate::runtime::{ContainerRuntime, LogPart};

/// How much is asked for when everything is wanted: more than any log is allowed to grow to, less than memory.
const EVERYTHING: usize = 256 << 20;
/// How many parts of a log may wait to be written.
const QUEUE: usize = 4;

/// Print what a kernel's container wrote to standard output and error, as far as it is kept.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "A kernel's results go to whoever asked for them; this is what its runner says, and programs \
                        that it starts beside the code."
)]
pub struct LogsArgs {
    /// Id of a kernel or a container, or its beginning
    #[arg(value_name = "KERNEL")]
    pub name: String,
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(
        long,
        visible_alias = "lines",
        value_name = "LINES",
        conflicts_with = "bytes"
    )]
    pub tail: Option<usize>,
    /// Only the last bytes
    #[arg(long, value_name = "N")]
    pub bytes: Option<usize>,
    /// Folder of the kernels' scratch folders [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such kernel, or the engine does not answer.
pub async fn main(
    args: LogsArgs,
    common: &CommonArgs,
    scratch_root: PathBuf,
) -> anyhow::Result<ExitCode> {
    let engine = node::open_to_operate(common, scratch_root).await?;
    let runtime = engine.runtime;
    logs(&args, &*runtime, &mut std::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the log to `to`; a reader that goes away ends it.
///
/// # Errors
/// When there is no such kernel, or the engine does not answer.
pub async fn logs(
    args: &LogsArgs,
    runtime: &dyn ContainerRuntime,
    to: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    let id = kernels::find(runtime, &args.name).await?.id;
    let limit = args.bytes.unwrap_or(EVERYTHING).min(EVERYTHING);
    if !args.follow {
        let log = runtime.logs(&id, limit).await?;
        super::write(to, last_lines(&log, args.tail))?;
        return Ok(());
    }
    let (sender, mut parts) = mpsc::channel(QUEUE);
    let following = runtime.follow(&id, limit, sender);
    let writing = async {
        let mut lines = args.tail;
        while let Some(part) = parts.recv().await {
            let bytes = match &part {
                // The first part is what was there before.
                LogPart::Bytes(bytes) => last_lines(bytes, lines.take()),
                LogPart::Gap => {
                    eprintln!(
                        "backendai-agent: the log grew faster than it was read; a part is missing here"
                    );
                    continue;
                }
            };
            if !super::write(to, bytes)? {
                break;
            }
        }
        parts.close();
        Ok(())
    };
    let (followed, written) = tokio::join!(following, writing);
    written.and(followed.map_err(Into::into))
}

/// The end of a text with at most so many lines.
fn last_lines(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else {
        return text;
    };
    // The last line may lack its end.
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1) {
        None => &[],
        Some(before) => breaks.nth(before).map_or(text, |(at, _)| &text[at + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_counted_from_the_end() {
        let text = b"one\ntwo\n\nfour\n";
        for (lines, wanted) in [
            (0, ""),
            (1, "four\n"),
            (2, "\nfour\n"),
            (3, "two\n\nfour\n"),
            (4, "one\ntwo\n\nfour\n"),
            (9, "one\ntwo\n\nfour\n"),
        ] {
            assert_eq!(last_lines(text, Some(lines)), wanted.as_bytes(), "{lines}");
        }
        assert_eq!(last_lines(b"one\ntwo", Some(1)), b"two");
        assert_eq!(last_lines(b"", Some(3)), b"");
        assert_eq!(last_lines(text, None), text);
    }
}
