//! `backendai-agent krunner`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use crate::krunner;

/// Hand on the runner that works inside kernels.
#[derive(Clone, Debug, clap::Args)]
pub struct KrunnerArgs {
    /// What to do.
    #[command(subcommand)]
    command: KrunnerCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum KrunnerCommand {
    /// Write the built-in layer as an OCI image layout, for image push and for --krunner-env
    Export(ExportArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct ExportArgs {
    /// Folder to write; absent or empty
    path: PathBuf,
    /// Name of the image in the layout
    #[arg(long, default_value = concat!("backendai-krunner:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(args: KrunnerArgs) -> anyhow::Result<ExitCode> {
    let KrunnerCommand::Export(args) = args.command;
    let (name, path) = (args.name, args.path);
    let exported = tokio::task::spawn_blocking(move || krunner::export(&name, &path)).await??;
    if args.json {
        let text = json!({
            "name": exported.name,
            "digest": exported.digest,
            "layer": exported.layer,
            "version": exported.version,
        });
        println!("{text}");
    } else {
        println!("{} {}", exported.digest, exported.name);
    }
    Ok(ExitCode::SUCCESS)
}
