//! `exec`: a second program in a living container. Its shim copies the output into pipes of ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::{
    Container, DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, StartResponse,
    WaitRequest,
};
use prost_types::Any;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::sync::Mutex;

use super::client::{Answer, absent_is_done, engine_error, failed};
use super::create::refused;
use super::{Inner, NAME};
use crate::runtime::oci;
use crate::runtime::output::{self, gather, too_long};
use crate::runtime::{ContainerId, ExecOutput, ExecSpec, Result, RuntimeError, check};

/// Type of a process in containerd's requests.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A program in a container: ended and forgotten when this is dropped, whatever became of the call.
struct Exec {
    engine: Arc<Inner>,
    container: ContainerId,
    id: String,
    folder: PathBuf,
    /// Held while the start goes on.
    start: Arc<Mutex<()>>,
}

impl Drop for Exec {
    fn drop(&mut self) {
        let (engine, container, id) = (
            Arc::clone(&self.engine),
            self.container.0.clone(),
            self.id.clone(),
        );
        let (start, folder) = (Arc::clone(&self.start), self.folder.clone());
        let Ok(tokio) = tokio::runtime::Handle::try_current() else {
            let _ = fs::remove_dir_all(folder);
            return;
        };
        self.engine.background.spawn_on(
            async move {
                let _started = start.lock().await;
                let _ = fs::remove_dir_all(folder);
                let kill = KillRequest {
                    container_id: container.clone(),
                    exec_id: id.clone(),
                    signal: 9,
                    all: false,
                };
                // One that never began cannot be killed, and would be waited for in vain.
                if engine.client.ask(kill).await.is_ok() {
                    let _ = engine.client.ask(wait_request(&container, &id)).await;
                }
                let delete = DeleteProcessRequest {
                    container_id: container,
                    exec_id: id,
                };
                if let Err(status) = absent_is_done(engine.client.ask(delete).await) {
                    tracing::debug!("forgetting a program: {}", status.message());
                }
            },
            &tokio,
        );
    }
}

/// Runs a program and collects its output.
pub(super) async fn exec(
    engine: &Arc<Inner>,
    container: &ContainerId,
    spec: &ExecSpec,
) -> Result<ExecOutput> {
    let action = output::action(container, spec);
    let (record, _) = engine.container(container).await?;
    check::exec(&engine.inspect(container).await?, spec)?;
    let id = format!("exec-{}", uuid::Uuid::new_v4().simple());
    let exec = Exec {
        engine: Arc::clone(engine),
        container: container.clone(),
        folder: engine.run_dir.join("containerd").join(&id),
        id,
        start: Arc::default(),
    };
    match tokio::time::timeout(spec.time_limit, exec.run(&record, spec, &action)).await {
        Ok(done) => done,
        Err(_) => Err(too_long(NAME, action, spec)),
    }
}

impl Exec {
    async fn run(
        &self,
        container: &Container,
        spec: &ExecSpec,
        action: &str,
    ) -> Result<ExecOutput> {
        let engine = &self.engine;
        let broken = |error: io::Error| engine_error(action, error.into());
        let [stdout, stderr] = ["out", "err"].map(|name| self.folder.join(name));
        fs::create_dir_all(&self.folder).map_err(broken)?;
        let (out, err) = (
            pipe(&stdout).map_err(broken)?,
            pipe(&stderr).map_err(broken)?,
        );
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let oci = container.spec.as_ref().map_or(&[][..], |any| &any.value);
        let process = oci::joining(oci, spec).map_err(|error| broken(error.into()))?;
        let request = ExecProcessRequest {
            container_id: self.container.0.clone(),
            exec_id: self.id.clone(),
            stdout: text(&stdout),
            stderr: text(&stderr),
            spec: Some(Any {
                type_url: PROCESS.to_owned(),
                value: process.to_string().into_bytes(),
            }),
            ..ExecProcessRequest::default()
        };
        let made = engine.client.ask(request).await;
        made.map_err(failed(action))?;
        let (started, out, err) = self.start_program(out, err).await.map_err(broken)?;
        started.map_err(|status| match refused(&status) {
            Some(text) => RuntimeError::Invalid(format!("{action}: {text}")),
            None => failed(action)(status),
        })?;
        let wait = wait_request(&self.container.0, &self.id);
        let ended = engine.client.ask_within(spec.time_limit, wait);
        let (ended, stdout, stderr) = gather(out, err, ended).await;
        let code = ended.map_err(failed(action))?.exit_status;
        Ok(ExecOutput {
            code: i32::try_from(code).unwrap_or(255),
            stdout,
            stderr,
        })
    }

    /// Starts the program, whose output somebody must be there to read. To its end, also when the program's time is over
    /// meanwhile: a handler that is killed on the way may leave a program behind that nobody knows.
    async fn start_program(
        &self,
        out: Receiver,
        err: Receiver,
    ) -> io::Result<(Answer<StartResponse>, Receiver, Receiver)> {
        let (engine, start) = (Arc::clone(&self.engine), Arc::clone(&self.start));
        let request = StartRequest {
            container_id: self.container.0.clone(),
            exec_id: self.id.clone(),
        };
        let held = start.lock_owned().await;
        let started = self.engine.background.spawn(async move {
            let _held = held;
            (engine.client.ask(request).await, out, err)
        });
        started.await.map_err(io::Error::other)
    }
}

fn wait_request(container: &str, id: &str) -> WaitRequest {
    WaitRequest {
        container_id: container.to_owned(),
        exec_id: id.to_owned(),
    }
}

/// Makes a named pipe and opens its reading end.
fn pipe(path: &Path) -> io::Result<Receiver> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    // Open for writing as well, so that there is no end before the shim has begun.
    OpenOptions::new().read_write(false).open_receiver(path)
}
