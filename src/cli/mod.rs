//! The command line: one file for each subcommand. `serve` is the default.

pub mod image;
pub mod run;
pub mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    pub common: CommonArgs,
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

/// The container engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// libcontainer in a small monitor process for each container; no daemon.
    #[default]
    Youki,
}

/// Options that every subcommand takes.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Container engine.
    #[arg(
        long,
        env = "BACKEND_RUNTIME",
        value_enum,
        default_value_t,
        global = true
    )]
    pub runtime: RuntimeKind,
    /// Folder for images, snapshots and the krunner layer.
    #[arg(
        long,
        env = "BACKEND_STATE_DIR",
        default_value = "/var/lib/backendai-agent",
        global = true
    )]
    pub state_dir: PathBuf,
    /// Folder for sockets and monitors.
    #[arg(
        long,
        env = "BACKEND_RUN_DIR",
        default_value = "/run/backendai-agent",
        global = true
    )]
    pub run_dir: PathBuf,
}

/// Runs the command line's command.
///
/// # Errors
/// Whatever ended the command; `main` prints it and exits with 1.
pub async fn main(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => serve::main(cli.serve, cli.common).await,
        Some(Command::Serve(args)) => serve::main(*args, cli.common).await,
        Some(Command::Run(args)) => run::main(*args, cli.common).await,
        Some(Command::Image(args)) => image::main(args, cli.common).await,
    }
}
