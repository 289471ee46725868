//! What runs in the containers of the engine in memory: the line between the engine, which keeps states, logs and
//! limits, and its programs.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::{FakeRuntime, RunnerEnd};
use crate::runtime::{ContainerSpec, ExecOutput, Pid, Result};

/// A program as the engine wants it run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// The whole environment, `K=V`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User and group id.
    pub user: (u32, u32),
}

/// Begins programs.
#[async_trait]
pub trait Programs: Send + Sync {
    /// Begins the first program of a container: `call` is what it is run with, `container` what it is to see beside. It
    /// tells its output with [`FakeRuntime::log`], and its end, after all output, with [`FakeRuntime::exit`].
    ///
    /// # Errors
    /// [`crate::runtime::RuntimeError::Invalid`] where the program cannot be run; nothing of it is left then.
    async fn start(
        &self,
        engine: &FakeRuntime,
        container: &ContainerSpec,
        call: Call,
    ) -> Result<Arc<dyn Program>>;
}

/// The first program of a container. Dropping it ends it, and it takes with it all that was run beside it.
#[async_trait]
pub trait Program: Send + Sync {
    /// Its number on the host, where it is a process.
    fn pid(&self) -> Option<Pid> {
        None
    }

    /// The agent's end of its channels, where it plays the krunner.
    fn runner(&self) -> Option<RunnerEnd> {
        None
    }

    /// Gives it a signal. `false` from a program that knows no signals: the engine takes it as ended by this one.
    fn signal(&self, signal: i32) -> bool;

    /// Runs a second program beside it, and gathers its output as [`crate::runtime::output`] does. Dropping the future
    /// ends that program.
    ///
    /// # Errors
    /// [`crate::runtime::RuntimeError::Invalid`] where the program cannot be run.
    async fn exec(&self, call: Call) -> Result<ExecOutput>;
}
