//! The command line: one file for each subcommand. `serve` is the default.

pub mod daemon;
pub mod image;
mod node;
pub mod run;
pub mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use crate::backends::RuntimeKind;
use crate::config::{Complaints, Settings};

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
    /// Import, pull, list and remove images of engines without a store of their own.
    Image(image::ImageArgs),
}

/// Options that every subcommand takes, as they are given.
#[derive(Clone, Debug, Default, Args)]
pub struct CommonOptions {
    /// Container engine: docker, containerd or youki [default: youki]
    #[arg(long, env = "BACKEND_RUNTIME", global = true)]
    pub runtime: Option<String>,
    /// Socket of the container engine [default: the engine's own]
    #[arg(
        long,
        value_name = "PATH",
        env = "BACKEND_RUNTIME_ENDPOINT",
        global = true
    )]
    pub runtime_endpoint: Option<String>,
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

/// What holds for every subcommand, from options, environment, file and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonArgs {
    /// Container engine.
    pub runtime: RuntimeKind,
    /// Socket of the container engine; `None` is the engine's own.
    pub runtime_endpoint: Option<String>,
    /// Folder for images, snapshots and the krunner layer.
    pub state_dir: PathBuf,
    /// Folder for sockets and monitors.
    pub run_dir: PathBuf,
}

/// Runs the command line's command.
///
/// # Errors
/// Whatever ended the command; `main` prints it and exits with 1.
pub async fn main(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => serve::main(cli.serve, &cli.common).await,
        Some(Command::Serve(args)) => serve::main(*args, &cli.common).await,
        Some(Command::Run(args)) => match common(&cli.common) {
            Ok(common) => run::main(*args, common).await,
            Err(complaints) => Ok(usage(&complaints)),
        },
        Some(Command::Image(args)) => match common(&cli.common) {
            Ok(common) => image::main(args, common).await,
            Err(complaints) => Ok(usage(&complaints)),
        },
    }
}

fn common(options: &CommonOptions) -> Result<CommonArgs, Complaints> {
    let mut settings = Settings::load(options)?;
    let common = settings.common();
    settings.finish(common)
}

/// Prints what is wrong with the options; exit status 2.
fn usage(complaints: &Complaints) -> ExitCode {
    for complaint in &complaints.0 {
        eprintln!("backendai-agent: {complaint}");
    }
    ExitCode::from(2)
}
