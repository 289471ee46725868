//! `backendai-agent run`.

use std::process::ExitCode;

use super::CommonArgs;

/// Run code in a new kernel.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(_args: RunArgs, _common: CommonArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
