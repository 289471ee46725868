//! What a manager can ask of the agent and what it gets back: one variant for each call, decoded and validated, free
//! of any generation's wire form.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::resource::slot::SlotAmounts;
use crate::runtime::{LabelMap, RegistryAuth};

/// A kernel's id as the manager gives it: a lower-case hyphenated UUID in practice, but any text that is a valid file
/// name is accepted. Construction checks it, because the id becomes a folder's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(String);

/// The text cannot be a kernel's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel id {0:?} is not a plain name of 1 to 128 letters, digits, '-', '_' or '.'")]
pub struct InvalidKernelId(pub String);

impl KernelId {
    /// Checks and wraps an id.
    ///
    /// # Errors
    /// When the text could not be the name of a folder.
    pub fn parse(text: &str) -> Result<Self, InvalidKernelId> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.chars().all(plain)
        {
            return Err(InvalidKernelId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call of the manager.
#[derive(Debug)]
pub enum Request {
    /// Answers with the same text.
    Ping {
        /// The text.
        message: String,
    },
    /// Refreshes the kernel's last-used clock; unknown kernels are ignored.
    PingKernel {
        /// The kernel.
        kernel: KernelId,
    },
    /// Creates a kernel and starts its container.
    CreateKernel {
        /// The new kernel.
        kernel: KernelId,
        /// What it is made of.
        config: Box<KernelConfig>,
    },
    /// Ends a kernel; an unknown one counts as ended.
    DestroyKernel {
        /// The kernel.
        kernel: KernelId,
        /// Why, for the log.
        reason: String,
    },
    /// Interrupts what the kernel runs.
    InterruptKernel {
        /// The kernel.
        kernel: KernelId,
    },
    /// Asks for code completions.
    GetCompletions {
        /// The kernel.
        kernel: KernelId,
        /// Code up to the cursor.
        text: String,
        /// Further options, passed on to the runner as they are.
        options: serde_json::Map<String, serde_json::Value>,
    },
    /// Asks for the container's log.
    GetLogs {
        /// The kernel.
        kernel: KernelId,
    },
    /// Makes the kernel's container anew; scratch and allocation stay.
    RestartKernel {
        /// The kernel.
        kernel: KernelId,
        /// Only image and environment are used; the rest is recovered.
        config: Box<KernelConfig>,
    },
    /// Runs code, or goes on with what runs.
    Execute(Box<Execute>),
    /// Starts a service program inside.
    StartService {
        /// The kernel.
        kernel: KernelId,
        /// Name from the image's service ports.
        service: String,
        /// Options, passed on to the runner as they are.
        options: serde_json::Map<String, serde_json::Value>,
    },
    /// Writes a file below the work folder.
    UploadFile {
        /// The kernel.
        kernel: KernelId,
        /// Path relative to the work folder.
        filename: String,
        /// Content.
        data: Bytes,
    },
    /// Reads a file or folder as a tar archive.
    DownloadFile {
        /// The kernel.
        kernel: KernelId,
        /// Path, relative to the work folder or absolute below it.
        filepath: String,
    },
    /// Lists a folder.
    ListFiles {
        /// The kernel.
        kernel: KernelId,
        /// Path, relative to the work folder or absolute below it.
        path: String,
    },
    /// Refreshes the kernel's last-used clock; unknown kernels are ignored.
    RefreshIdle {
        /// The kernel.
        kernel: KernelId,
    },
    /// Destroys every kernel and waits (19.03 `reset_agent`, `clean_all_kernels`).
    DestroyAll {
        /// Why, for the log.
        reason: String,
    },
}

/// One `execute` call.
#[derive(Clone, Debug, PartialEq)]
pub struct Execute {
    /// The kernel.
    pub kernel: KernelId,
    /// The run it belongs to; `None` starts a run with a fresh id of 32 hex digits.
    pub run: Option<String>,
    /// What to send to the runner.
    pub mode: ExecuteMode,
    /// When to answer with what there is; `None` waits for an end mark without limit.
    pub flush_timeout: Option<Duration>,
}

/// What an `execute` call sends to the runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecuteMode {
    /// Source text for the query-mode interpreter.
    Query(String),
    /// Shell commands, `*` for the runtime's heuristic, empty to skip.
    Batch {
        /// Clean step.
        clean: String,
        /// Build step.
        build: String,
        /// Execution step.
        exec: String,
    },
    /// A line for a program that waits for input.
    Input(String),
    /// Nothing: collects further output.
    Continue,
}

/// What a kernel is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelConfig {
    /// Canonical reference, `registry/name:tag`.
    pub image: String,
    /// Name of the image's registry: the part of `image` before the repository.
    pub registry: String,
    /// Config digest, `sha256:…`, empty when unknown.
    pub digest: String,
    /// Manifest digest to pull by, where the manager gives one.
    pub repo_digest: Option<String>,
    /// Credentials for the registry.
    pub auth: Option<RegistryAuth>,
    /// The image's labels as the manager knows them.
    pub labels: LabelMap,
    /// Amounts asked for.
    pub slots: SlotAmounts,
    /// Seconds without use after which the agent ends the kernel; 0 is never.
    pub idle_timeout: u64,
    /// Virtual folders.
    pub mounts: Vec<VfolderMount>,
    /// The session's environment, in order.
    pub environ: Vec<(String, String)>,
}

/// One virtual folder of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfolderMount {
    /// Name below `/home/work`.
    pub name: String,
    /// Volume host: a folder below the mount base.
    pub host: String,
    /// 32 hex digits.
    pub id: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// The answer to a [`Request`].
#[derive(Debug)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// A text.
    Text(String),
    /// A kernel was created or restarted.
    Created(Box<Created>),
    /// A kernel was destroyed; its last statistics where there are any.
    Destroyed(Option<crate::stats::KernelStats>),
    /// The container's log, invalid UTF-8 dropped.
    Logs(String),
    /// Output of a run.
    Run(Box<RunResult>),
    /// The run was cancelled because its kernel was destroyed or restarted.
    Cancelled,
    /// The runner's own JSON answer to a completion or a service request.
    Json(serde_json::Value),
    /// A tar archive.
    Archive(Bytes),
    /// A listing.
    Files(FileListing),
}

/// What the manager must know of a new kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The kernel.
    pub kernel: KernelId,
    /// Host under which its ports are reached.
    pub host: String,
    /// Host port of the runner's command socket.
    pub repl_in_port: u16,
    /// Host port of the runner's output socket.
    pub repl_out_port: u16,
    /// Host port of the terminal's input, 0 without one.
    pub stdin_port: u16,
    /// Host port of the terminal's output, 0 without one.
    pub stdout_port: u16,
    /// Service ports.
    pub services: Vec<ServicePort>,
    /// The engine's id of the container.
    pub container: String,
    /// The resource spec as JSON text (19.03 `resource_spec`).
    pub resource_spec: String,
}

/// One service port of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServicePort {
    /// Name.
    pub name: String,
    /// `tcp`, `http` or `pty`.
    pub protocol: String,
    /// Port inside.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
}

/// What one `execute` call gives.
#[derive(Clone, Debug, PartialEq)]
pub struct RunResult {
    /// The run's id.
    pub run: String,
    /// Where the run is.
    pub status: RunStatus,
    /// Exit code, from end marks.
    pub exit_code: Option<i64>,
    /// The runner's options of a `waiting-input` mark.
    pub options: Option<serde_json::Value>,
    /// Output in order; neighbours of the same stream are joined.
    pub console: Vec<ConsoleItem>,
    /// Files the run left in `.output`: name and address.
    pub files: Vec<(String, String)>,
}

/// Where a run is when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// `flush_timeout` passed: ask again.
    Continued,
    /// The clean step ended: ask again.
    CleanFinished,
    /// The build step ended: ask again.
    BuildFinished,
    /// The program waits for input.
    WaitingInput,
    /// The run is over.
    Finished,
}

/// One piece of a run's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleItem {
    /// Standard output.
    Stdout(String),
    /// Standard error.
    Stderr(String),
    /// A picture or the like: MIME type and text, as the runner sends it.
    Media {
        /// MIME type.
        mime: String,
        /// Data as text (a data URI, XML …).
        data: String,
    },
    /// HTML text.
    Html(String),
    /// A line of the runner's log.
    Log(String),
}

/// A listing of a folder in the work folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileListing {
    /// JSON text of the entries, with a final newline; empty when the folder is not there.
    pub files: String,
    /// What went wrong, as text.
    pub errors: String,
    /// The resolved path, absent when the folder is not there.
    pub abspath: Option<String>,
}

/// Further information for the node's heartbeat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Slot name to unit and total amount, every slot of every device the agent knows, zero included.
    pub slots: BTreeMap<String, (crate::resource::slot::SlotUnit, String)>,
    /// Canonical reference and config digest of each kernel image.
    pub images: Vec<(String, String)>,
}
