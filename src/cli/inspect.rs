//! `backendai-agent inspect`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::kernels::{self, Places};
use super::{CommonArgs, node, print};
use crate::runtime::ContainerRuntime;

/// Show all that is known of one kernel, as JSON.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "JSON: an object with the names of `ps --json`, and with labels (names and texts), cgroup (a path \
                        below the root of every hierarchy) and scratch (the kernel's folder)."
)]
pub struct InspectArgs {
    /// Id of a kernel or a container, or its beginning
    #[arg(value_name = "KERNEL|CONTAINER")]
    pub name: String,
    /// Print JSON in one line
    #[arg(long)]
    pub json: bool,
    /// Folder of the kernels' scratch folders [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such kernel, or the engine does not answer.
pub async fn main(
    args: &InspectArgs,
    common: &CommonArgs,
    scratch_root: PathBuf,
) -> anyhow::Result<ExitCode> {
    let engine = node::open_to_operate(common, scratch_root.clone()).await?;
    let places = Places::new(common, scratch_root, &*engine.images).await;
    let value = describe(&args.name, &*engine.runtime, &places).await?;
    let text = if args.json {
        value.to_string()
    } else {
        serde_json::to_string_pretty(&value)?
    };
    print(&(text + "\n"))
}

/// The kernel's JSON.
///
/// # Errors
/// When there is no such kernel, or the engine does not answer.
pub async fn describe(
    name: &str,
    runtime: &dyn ContainerRuntime,
    places: &Places,
) -> anyhow::Result<Value> {
    let container = kernels::find(runtime, name).await?;
    // The list may know less of each than the engine tells of one.
    let container = runtime.inspect(&container.id).await?;
    let kernel = kernels::Kernel::new(container, places);
    let mut all = kernel.to_json();
    all.insert("labels".to_owned(), json!(kernel.container.labels));
    all.insert("cgroup".to_owned(), json!(kernel.container.cgroup));
    all.insert("scratch".to_owned(), json!(kernel.scratch));
    Ok(all.into())
}
