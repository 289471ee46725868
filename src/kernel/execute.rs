//! One `execute` call: its turn, its commands, its output and the files of the run.

use std::path::PathBuf;

use super::files::{self, OutputFiles};
use super::live::Live;
use super::runner::console::Segment;
use super::runner::run::{Flush, Run};
use super::runner::wire::{Mark, Op};
use crate::agent::AgentError;
use crate::agent::request::{ExecuteMode, RunResult, RunStatus};

/// Takes part in a run: waits for its turn, sends what `mode` says and collects output.
///
/// # Errors
/// When the runner cannot be reached.
pub async fn execute(
    live: &Live,
    run: &str,
    mode: ExecuteMode,
    flush: Flush,
) -> Result<RunResult, AgentError> {
    let fresh = matches!(mode, ExecuteMode::Query(_) | ExecuteMode::Batch { .. });
    let place = live.runner.enter(run, fresh);
    live.runner.open().await?;
    place.run.turn().await;
    if fresh {
        place.run.begin(Some(scan(live).await));
    } else if mode != ExecuteMode::Continue {
        place.run.begin(None);
    }
    live.runner.send(ops(mode)).await?;
    let segment = place.run.collect(flush).await;
    Ok(result(live, &place.run, run, segment).await)
}

fn ops(mode: ExecuteMode) -> Vec<Op> {
    match mode {
        ExecuteMode::Query(code) => vec![Op::Code(code)],
        ExecuteMode::Batch { clean, build, exec } => {
            vec![Op::Clean(clean), Op::Build(build), Op::Exec(exec)]
        }
        ExecuteMode::Input(text) => vec![Op::Input(text)],
        ExecuteMode::Continue => Vec::new(),
    }
}

async fn result(live: &Live, run: &Run, id: &str, segment: Segment) -> RunResult {
    let mut result = RunResult {
        run: id.to_owned(),
        status: RunStatus::Continued,
        exit_code: None,
        options: None,
        console: segment.console,
        files: Vec::new(),
    };
    (result.status, result.exit_code) = match segment.mark {
        None => (RunStatus::Continued, None),
        Some(Mark::CleanFinished(code)) => (RunStatus::CleanFinished, code),
        Some(Mark::BuildFinished(code)) => (RunStatus::BuildFinished, code),
        Some(Mark::WaitingInput(options)) => {
            result.options = Some(options);
            (RunStatus::WaitingInput, None)
        }
        Some(Mark::Finished {
            exit_code,
            with_files,
        }) => {
            if with_files {
                result.files = changed(live, run).await;
            }
            (RunStatus::Finished, exit_code)
        }
    };
    result
}

async fn changed(live: &Live, run: &Run) -> Vec<(String, String)> {
    let names = files::changed(&run.take_baseline(), &scan(live).await);
    // Without a store for files 19.03 reports this address.
    let with_address = |name| (name, "#dummy-upload".to_owned());
    names.into_iter().map(with_address).collect()
}

async fn scan(live: &Live) -> OutputFiles {
    let work: PathBuf = live.scratch.work();
    let scanned = tokio::task::spawn_blocking(move || files::scan(&work));
    scanned.await.unwrap_or_default()
}
