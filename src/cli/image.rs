//! `backendai-agent image`.

use std::process::ExitCode;

use super::CommonArgs;

/// Manage images.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageArgs {}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(_args: ImageArgs, _common: CommonArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
