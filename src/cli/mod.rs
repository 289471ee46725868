//! The command line: one file for each subcommand. `serve` is the default.

pub mod daemon;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod inspect;
pub mod kernels;
pub mod krunner;
pub mod logs;
mod node;
pub mod ps;
pub mod run;
pub mod serve;
mod signals;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::backends;
pub use crate::backends::RuntimeKind;
use crate::config::{Complaints, KernelOptions, Settings};

/// A node agent for Backend.AI: runs computing sessions in OCI containers.
#[derive(Debug, Parser)]
#[command(
    name = "backendai-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub common: CommonOptions,
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `serve`, also without its name (the 19.03 command line).
    #[command(flatten)]
    pub serve: serve::ServeArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent (the default).
    Serve(Box<serve::ServeArgs>),
    /// Run code in a new kernel on this machine, with no manager.
    Run(Box<run::RunArgs>),
    /// List the kernels on this node.
    Ps(ps::PsArgs),
    /// Show all that is known of one kernel, as JSON.
    Inspect(inspect::InspectArgs),
    /// Print what a kernel's container wrote to standard output and error.
    Logs(logs::LogsArgs),
    /// Run a program in a kernel's container.
    Exec(exec::ExecArgs),
    /// Import, pull, push, list and remove images.
    Image(image::ImageArgs),
    /// Hand on the runner that works inside kernels.
    Krunner(krunner::KrunnerArgs),
    /// Check whether this machine can run kernels, and say how to mend what keeps it from that.
    Doctor(doctor::DoctorArgs),
}

/// Options that every subcommand takes, as they are given.
#[derive(Clone, Debug, Default, Args)]
pub struct CommonOptions {
    /// Container engine: docker, containerd or youki [default: youki]
    #[arg(long, env = "BACKEND_RUNTIME", global = true)]
    pub runtime: Option<String>,
    /// Socket of the engine's daemon: a path, unix://PATH, or for docker tcp://HOST:PORT [default: the engine's own]
    #[arg(
        long,
        value_name = "SOCKET",
        env = "BACKEND_RUNTIME_ENDPOINT",
        global = true
    )]
    pub runtime_endpoint: Option<String>,
    /// What runs containers below containerd: runc, crun, youki, runsc, a program's path, or a shim's name [default: runc]
    #[arg(
        long,
        value_name = "NAME",
        env = "BACKEND_RUNTIME_HANDLER",
        global = true
    )]
    pub runtime_handler: Option<String>,
    /// Snapshotter of containerd: overlayfs, native, or any other that it has [default: overlayfs]
    #[arg(long, value_name = "NAME", env = "BACKEND_SNAPSHOTTER", global = true)]
    pub snapshotter: Option<String>,
    /// Folder for images, snapshots and the krunner layer [default: /var/lib/backendai-agent]
    #[arg(long, value_name = "PATH", env = "BACKEND_STATE_DIR", global = true)]
    pub state_dir: Option<String>,
    /// Folder for sockets and monitors [default: /run/backendai-agent]
    #[arg(long, value_name = "PATH", env = "BACKEND_RUN_DIR", global = true)]
    pub run_dir: Option<String>,
    /// Configuration file with the names of the options as keys [default: /etc/backendai-agent/agent.toml if it is there]
    #[arg(long, value_name = "FILE", env = "BACKEND_AGENT_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

/// Options of those that start kernels, as they are given.
#[derive(Clone, Debug, Default, Args)]
pub struct KrunnerOptions {
    /// What kernels get at /opt/backend.ai: an OCI image layout, archive, unpacked folder, or image of a registry [default: the
    /// built-in runner]
    #[arg(long, value_name = "REF|PATH", env = "BACKEND_KRUNNER_ENV")]
    pub krunner_env: Option<String>,
    /// For an environment of 19.03, which holds no runner: the folder ai/backend of an installed backend.ai-agent 19.03
    #[arg(long, value_name = "PATH", env = "BACKEND_KRUNNER_PACKAGE")]
    pub krunner_package: Option<String>,
}

impl KrunnerOptions {
    /// Names and values, for the settings.
    pub fn given(&self) -> [(&'static str, &Option<String>); 2] {
        [
            ("krunner-env", &self.krunner_env),
            ("krunner-package", &self.krunner_package),
        ]
    }
}

/// What holds for every subcommand, from options, environment, file and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonArgs {
    /// Container engine.
    pub runtime: RuntimeKind,
    /// Socket of the container engine; `None` is the engine's own.
    pub runtime_endpoint: Option<String>,
    /// Folder of the certificates for a TCP endpoint; `None` is plain TCP.
    pub runtime_tls: Option<PathBuf>,
    /// What runs containers below the engine; `None` is the engine's default.
    pub runtime_handler: Option<String>,
    /// The engine's snapshotter; `None` is the engine's default.
    pub snapshotter: Option<String>,
    /// Folder for images, snapshots and the krunner layer.
    pub state_dir: PathBuf,
    /// Folder for sockets and monitors.
    pub run_dir: PathBuf,
}

/// Does what must be done while the process has one thread: an ordinary user's goes to where its engine works.
///
/// # Errors
/// What the user lacks for that; `doctor` goes on and tells it.
pub fn prepare(cli: &mut Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Some(Command::Krunner(_))) {
        return Ok(());
    }
    // What is wrong with the options is told by the command itself.
    let Ok(common) = common(&cli.common) else {
        return Ok(());
    };
    match (
        backends::prepare(common.runtime, &common.run_dir),
        &mut cli.command,
    ) {
        (Ok(()), _) => Ok(()),
        (Err(error), Some(Command::Doctor(doctor))) => {
            doctor.refused = Some(error.to_string());
            Ok(())
        }
        (Err(error), _) => {
            Err(anyhow::Error::from(error).context("cannot run as an ordinary user"))
        }
    }
}

/// Runs the command line's command.
///
/// # Errors
/// Whatever ended the command; `main` prints it and exits with 1.
pub async fn main(cli: Cli) -> anyhow::Result<ExitCode> {
    match Box::pin(dispatch(cli)).await {
        Err(error) => error.downcast().map(|complaints| usage(&complaints)),
        ended => ended,
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let options = &cli.common;
    match cli.command {
        None => serve::main(cli.serve, options).await,
        Some(Command::Serve(args)) => serve::main(*args, options).await,
        Some(Command::Run(args)) => {
            let (common, kernel) = with_kernels(options, args.krunner.given())?;
            run::main(*args, common, kernel.krunner).await
        }
        Some(Command::Ps(args)) => {
            let (common, kernel) = with_kernels(options, [("scratch-root", &args.scratch_root)])?;
            ps::main(&args, &common, kernel.scratch_root).await
        }
        Some(Command::Inspect(args)) => {
            let (common, kernel) = with_kernels(options, [("scratch-root", &args.scratch_root)])?;
            inspect::main(&args, &common, kernel.scratch_root).await
        }
        Some(Command::Logs(args)) => {
            let (common, kernel) = with_kernels(options, [("scratch-root", &args.scratch_root)])?;
            logs::main(args, &common, kernel.scratch_root).await
        }
        Some(Command::Exec(args)) => {
            let (common, kernel) = with_kernels(options, [("scratch-root", &args.scratch_root)])?;
            exec::main(args, &common, kernel.scratch_root).await
        }
        Some(Command::Image(args)) => image::main(args, common(options)?).await,
        Some(Command::Krunner(args)) => krunner::main(args).await,
        Some(Command::Doctor(args)) => {
            let given = [
                ("scratch-root", &args.scratch_root),
                ("container-port-range", &args.container_port_range),
            ];
            let (common, kernel) = with_kernels(options, given)?;
            doctor::main(&args, common, kernel).await
        }
    }
}

fn common(options: &CommonOptions) -> Result<CommonArgs, Complaints> {
    let mut settings = Settings::load(options)?;
    let common = settings.common();
    settings.finish(common)
}

/// For commands that look at kernels too: with those options of `serve` that they take.
fn with_kernels<'a>(
    options: &CommonOptions,
    given: impl IntoIterator<Item = (&'a str, &'a Option<String>)>,
) -> Result<(CommonArgs, KernelOptions), Complaints> {
    let mut settings = Settings::load(options)?;
    for (name, value) in given {
        settings.give(name, value.clone());
    }
    let common = settings.common();
    let kernel = settings.kernel(&common.state_dir);
    settings.finish((common, kernel))
}

/// Prints what is wrong with the options; exit status 2.
fn usage(complaints: &Complaints) -> ExitCode {
    for complaint in &complaints.0 {
        eprintln!("backendai-agent: {complaint}");
    }
    ExitCode::from(2)
}

/// Prints a text to standard output; a reader that has gone away is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    write(&mut io::stdout(), text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes bytes at once; false when nobody reads any more.
fn write(to: &mut (impl Write + ?Sized), bytes: &[u8]) -> io::Result<bool> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// A text `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is not NAME=VALUE".to_owned()),
    }
}
