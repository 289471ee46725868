//! `backendai-agent serve`.

use std::process::ExitCode;

use super::CommonArgs;

/// Run the node agent.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(_args: ServeArgs, _common: CommonArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
