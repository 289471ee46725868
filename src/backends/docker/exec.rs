//! A second program in a container.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::ExecInspectResponse;
use futures_util::{Stream, StreamExt as _};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::connect::{Client, status};
use super::{Docker, ENGINE, invalid, known, not_found};
use crate::runtime::output::{self, Output};
use crate::runtime::{ContainerId, ExecOutput, ExecSpec, Pid, Result, RuntimeError};
use crate::sys::pidfd::PidFd;

/// How often a silent program is looked at: what it leaves running holds its output open.
const GLANCE: Duration = Duration::from_millis(100);

/// So many glances later a program that is to be killed and has not begun is taken not to begin any more.
const BEGINNING: u32 = 20;

impl Docker {
    pub(super) async fn run_in(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        known(id)?;
        let Some(program) = spec.args.first() else {
            return Err(invalid(id, "there is no program to run"));
        };
        let action = format!("running {program:?} in container {id}");
        let exec = Exec {
            id: self.prepare(id, spec, &action).await?,
            client: self.client.clone(),
            action,
        };
        let mut unless_over = Ending(Some(exec.clone()), &self.background);
        let output = match timeout(spec.time_limit, exec.run()).await {
            Ok(done) => Ok(done?),
            Err(_) => {
                exec.end().await?;
                Err(output::too_long(ENGINE, exec.action, spec))
            }
        };
        unless_over.0 = None;
        output
    }

    async fn prepare(&self, id: &ContainerId, spec: &ExecSpec, action: &str) -> Result<String> {
        let (user, group) = spec.user;
        let env = spec
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(env.collect()),
            cmd: Some(spec.args.clone()),
            user: Some(format!("{user}:{group}")),
            working_dir: Some(spec.cwd.to_string_lossy().into_owned()),
            ..CreateExecOptions::default()
        };
        let made = self
            .client
            .ask(action, self.client.api.create_exec(&id.0, options))
            .await;
        let made = made
            .map_err(not_found(id))
            .map_err(|error| match status(&error) {
                Some(409) => invalid(id, "it is not running"),
                _ => error,
            })?;
        Ok(made.id)
    }
}

/// A program in a container.
#[derive(Clone)]
struct Exec {
    client: Client,
    id: String,
    action: String,
}

impl Exec {
    async fn run(&self) -> Result<ExecOutput> {
        let action = self.action.as_str();
        let options = StartExecOptions {
            detach: false,
            tty: false,
            output_capacity: None,
        };
        let started = self
            .client
            .ask(action, self.client.api.start_exec(&self.id, Some(options)))
            .await?;
        let StartExecResults::Attached {
            output: mut pieces, ..
        } = started
        else {
            return Err(self.client.failed(action, Error::RequestTimeoutError));
        };
        let mut kept = Streams::default();
        let ended = loop {
            tokio::select! {
                more = take(&mut pieces, &mut kept) => match more {
                    Ok(true) => {}
                    Ok(false) => break self.look().await?,
                    Err(error) => return Err(self.client.failed(action, error)),
                },
                () = sleep(GLANCE) => {
                    let seen = self.look().await?;
                    if seen.running == Some(false) {
                        let rest = async { while let Ok(true) = take(&mut pieces, &mut kept).await {} };
                        let _ = timeout(output::REST, rest).await;
                        break seen;
                    }
                }
            }
        };
        // One that was never a process: dockerd tells why in place of its output.
        if ended.pid.unwrap_or_default() == 0 && matches!(ended.exit_code, Some(126 | 127)) {
            let why = kept.stdout.into_bytes();
            let why = String::from_utf8_lossy(&why);
            return Err(RuntimeError::Invalid(format!("{action}: {}", why.trim())));
        }
        let code = ended.exit_code.and_then(|code| i32::try_from(code).ok());
        Ok(ExecOutput {
            code: code.unwrap_or(-1),
            stdout: kept.stdout.into_bytes(),
            stderr: kept.stderr.into_bytes(),
        })
    }

    async fn look(&self) -> Result<ExecInspectResponse> {
        self.client
            .ask(&self.action, self.client.api.inspect_exec(&self.id))
            .await
    }

    /// Kills the program, which dockerd has no call for.
    async fn end(&self) -> Result<()> {
        let pid = |seen: &ExecInspectResponse| {
            seen.pid
                .and_then(|pid| Pid::try_from(pid).ok())
                .unwrap_or_default()
        };
        let mut seen = self.look().await?;
        for _ in 0..BEGINNING {
            if pid(&seen) != 0 || seen.exit_code.is_some() {
                break;
            }
            sleep(GLANCE).await;
            seen = self.look().await?;
        }
        let process = PidFd::open(pid(&seen));
        // Looked at once more: the descriptor is of the program only if it still ran when it was opened.
        let seen = self.look().await?;
        if let (Ok(Some(process)), Some(true)) = (process, seen.running)
            && let Err(error) = pidfd_send_signal(&process, Signal::KILL)
        {
            let action = &self.action;
            tracing::warn!("{action}: nobody waits for it, and it cannot be killed: {error}");
        }
        Ok(())
    }
}

/// Ends the program when it is dropped before that is over.
struct Ending<'a>(Option<Exec>, &'a TaskTracker);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let (Some(exec), Ok(tokio)) = (self.0.take(), Handle::try_current()) else {
            return;
        };
        let ending = async move {
            if let Err(error) = exec.end().await {
                tracing::debug!("{}: ending it: {error}", exec.action);
            }
        };
        self.1.spawn_on(ending, &tokio);
    }
}

/// What is kept of both streams.
#[derive(Default)]
struct Streams {
    stdout: Output,
    stderr: Output,
}

/// Keeps the next piece of output; `false` when there is no more.
async fn take(
    output: &mut (impl Stream<Item = Result<LogOutput, Error>> + Unpin),
    kept: &mut Streams,
) -> Result<bool, Error> {
    let Some(piece) = output.next().await.transpose()? else {
        return Ok(false);
    };
    match piece {
        LogOutput::StdErr { message } => kept.stderr.add(&message),
        other => kept.stdout.add(&other.into_bytes()),
    }
    Ok(true)
}
