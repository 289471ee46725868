//! `backendai-agent serve`: its options, and how the daemon is put together.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::daemon::{self, Stop};
use super::node;
use super::{CommonOptions, KrunnerOptions};
use crate::config::Config;
use crate::logging;
use crate::manager::identity::Sources;
use crate::sys::rlimit;

/// Options of `serve`, as they are given; [`Config`] judges them.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// Namespace of the cluster in etcd [default: local]
    #[arg(long, value_name = "NAME", env = "BACKEND_NAMESPACE")]
    pub namespace: Option<String>,
    /// Address that the manager reaches this agent at [default: found out]
    #[arg(long, value_name = "HOST", env = "BACKEND_AGENT_HOST_OVERRIDE")]
    pub agent_host_override: Option<String>,
    /// Host that kernels are reached at [default: the agent's]
    #[arg(long, value_name = "HOST", env = "BACKEND_KERNEL_HOST_OVERRIDE")]
    pub kernel_host_override: Option<String>,
    /// TCP port of the RPC server [default: 6001]
    #[arg(long, value_name = "PORT", env = "BACKEND_AGENT_PORT")]
    pub agent_port: Option<String>,
    /// Host ports for kernels, both ends included [default: 30000-31000]
    #[arg(long, value_name = "LOW-HIGH", env = "BACKEND_CONTAINER_PORT_RANGE")]
    pub container_port_range: Option<String>,
    /// Address of etcd [default: 127.0.0.1:2379]
    #[arg(long, value_name = "HOST:PORT", env = "BACKEND_ETCD_ADDR")]
    pub etcd_addr: Option<String>,
    /// User in etcd; none is no authentication
    #[arg(long, value_name = "NAME", env = "BACKEND_ETCD_USER")]
    pub etcd_user: Option<String>,
    /// Password of the user in etcd
    #[arg(
        long,
        value_name = "TEXT",
        env = "BACKEND_ETCD_PASSWORD",
        hide_env_values = true
    )]
    pub etcd_password: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "SECONDS")]
    pub idle_timeout: Option<String>,
    /// What confines programs: docker or jail [default: docker]
    #[arg(long, value_name = "TYPE", env = "BACKEND_SANDBOX_TYPE")]
    pub sandbox_type: Option<String>,
    /// User id, or name, of programs in images that ask for a matching one [default: the agent's]
    #[arg(long, value_name = "USER")]
    pub kernel_uid: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "PATH", env = "DEBUG_KERNEL")]
    pub debug_kernel: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "PATH", env = "DEBUG_JAIL")]
    pub debug_jail: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "PATH", env = "DEBUG_HOOK")]
    pub debug_hook: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "FILE")]
    pub kernel_aliases: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "MASK")]
    pub limit_cpus: Option<String>,
    /// Deprecated, without effect
    #[arg(long, value_name = "MASK")]
    pub limit_gpus: Option<String>,
    /// File for the process id; removed at a clean exit
    #[arg(long, value_name = "PATH", env = "BACKEND_PID_FILE")]
    pub pid_file: Option<String>,
    /// Folder of the kernels' scratch folders [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
    /// File for JSON log lines, beside stderr
    #[arg(long, value_name = "PATH", env = "BACKEND_LOG_FILE")]
    pub log_file: Option<String>,
    /// Rotated log files to keep [default: 10]
    #[arg(long, value_name = "N", env = "BACKEND_LOG_FILE_COUNT")]
    pub log_file_count: Option<String>,
    /// Size of one log file [default: 10.0]
    #[arg(long, value_name = "MIB", env = "BACKEND_LOG_FILE_SIZE")]
    pub log_file_size: Option<String>,
    /// What SIGTERM does with kernels: destroy or keep [default: destroy]
    #[arg(long, value_name = "WHAT")]
    pub on_sigterm: Option<String>,
    /// Whose programs may not gain privileges by set-uid programs such as sudo: nobody, uid-match (images with that
    /// feature) or everybody [default: nobody]
    #[arg(long, value_name = "WHOSE")]
    pub no_new_privileges: Option<String>,
    /// Serve /metrics, /healthz and /readyz here [default: off]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_addr: Option<String>,
    /// What kernels get at `/opt/backend.ai`.
    #[command(flatten)]
    pub krunner: KrunnerOptions,
    /// An argument of the jail; a leading space lets it begin with a hyphen. May be repeated
    #[arg(long, value_name = "ARG")]
    pub jail_arg: Vec<String>,
    /// Scratch folders on tmpfs
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub scratch_in_memory: Option<String>,
    /// Keep dead containers
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub debug_skip_container_deletion: Option<String>,
    /// Log debug messages
    #[arg(
        long,
        num_args = 0,
        default_missing_value = "true",
        env = "BACKEND_DEBUG"
    )]
    pub debug: Option<String>,
    /// Accepted, without effect
    #[arg(
        long,
        short = 'v',
        num_args = 0,
        default_missing_value = "true",
        env = "BACKEND_VERBOSE"
    )]
    pub verbose: Option<String>,
}

impl ServeArgs {
    /// The options by name, as they are given.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, Option<String>)> {
        [
            ("namespace", &self.namespace),
            ("agent-host-override", &self.agent_host_override),
            ("kernel-host-override", &self.kernel_host_override),
            ("agent-port", &self.agent_port),
            ("container-port-range", &self.container_port_range),
            ("etcd-addr", &self.etcd_addr),
            ("etcd-user", &self.etcd_user),
            ("etcd-password", &self.etcd_password),
            ("idle-timeout", &self.idle_timeout),
            ("sandbox-type", &self.sandbox_type),
            ("kernel-uid", &self.kernel_uid),
            ("debug-kernel", &self.debug_kernel),
            ("debug-jail", &self.debug_jail),
            ("debug-hook", &self.debug_hook),
            ("kernel-aliases", &self.kernel_aliases),
            ("limit-cpus", &self.limit_cpus),
            ("limit-gpus", &self.limit_gpus),
            ("pid-file", &self.pid_file),
            ("scratch-root", &self.scratch_root),
            ("log-file", &self.log_file),
            ("log-file-count", &self.log_file_count),
            ("log-file-size", &self.log_file_size),
            ("on-sigterm", &self.on_sigterm),
            ("no-new-privileges", &self.no_new_privileges),
            ("metrics-addr", &self.metrics_addr),
            ("scratch-in-memory", &self.scratch_in_memory),
            (
                "debug-skip-container-deletion",
                &self.debug_skip_container_deletion,
            ),
            ("debug", &self.debug),
            ("verbose", &self.verbose),
        ]
        .into_iter()
        .chain(self.krunner.given())
        .map(|(name, value)| (name, value.clone()))
    }
}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(args: ServeArgs, common: &CommonOptions) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&args, common) {
        Ok(config) => config,
        Err(complaints) => return Ok(super::usage(&complaints)),
    };
    let config = config.check_host()?;
    logging::start(&config.log)?;
    if let Err(error) = rlimit::raise_open_files() {
        tracing::warn!("the number of open files stays as it is: {error}");
    }
    let (sender, stops) = mpsc::channel(4);
    let listening = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(listening.clone().run_until_cancelled_owned(listen(sender)?));
    let ended = Box::pin(daemon::run(config, Sources::default(), node::build, stops)).await;
    listening.cancel();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Turns signals into stops. The handlers are in place when this returns.
fn listen(stops: mpsc::Sender<Stop>) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        loop {
            let stop = tokio::select! {
                _ = interrupt.recv() => Stop::Interrupt,
                _ = terminate.recv() => Stop::Terminate,
            };
            tracing::info!(?stop, "a signal came");
            if stops.send(stop).await.is_err() {
                return;
            }
        }
    })
}
