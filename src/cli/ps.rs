//! `backendai-agent ps`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::kernels::{self, Kernel, Places, age, short};
use super::{CommonArgs, node, print};
use crate::runtime::ContainerRuntime;

/// List the kernels on this node: those of agents, and those of `backendai-agent run`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = JSON_HELP)]
pub struct PsArgs {
    /// Show also those whose program has ended
    #[arg(short, long)]
    pub all: bool,
    /// Show ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Folder of the kernels' scratch folders, which tell their slots [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
}

/// The names in the JSON, which do not change.
const JSON_HELP: &str = "No agent need run. Every command takes short ids as this one shows them.

JSON: a list of objects with these names; what is not known is null.
  kernel_id, container_id, name, image, agent_id   texts
  state        created, running or exited
  exit_code    once exited; 128 + N after signal N
  oom_killed   once exited: whether memory ran out
  pid          of the first process on this machine, while it lives
  started_at   seconds since 1970, while it lives
  address      IPv4 address inside
  ports        list of {host, container}: forwarded TCP ports
  slots        amounts by slot, as texts: {\"cpu\": \"1\", \"mem\": \"1073741824\"}";

/// Runs the command.
///
/// # Errors
/// When the engine does not answer.
pub async fn main(
    args: &PsArgs,
    common: &CommonArgs,
    scratch_root: PathBuf,
) -> anyhow::Result<ExitCode> {
    let engine = node::open_to_operate(common, scratch_root.clone()).await?;
    let places = Places::new(common, scratch_root, &*engine.images).await;
    print(&(list(args, &*engine.runtime, &places).await? + "\n"))
}

/// What the command prints, without the last line break.
///
/// # Errors
/// When the engine does not answer.
pub async fn list(
    args: &PsArgs,
    runtime: &dyn ContainerRuntime,
    places: &Places,
) -> anyhow::Result<String> {
    let mut kernels = kernels::all(runtime, places).await?;
    kernels.retain(|kernel| args.all || kernel.is_alive());
    if args.json {
        let all: Vec<Value> = kernels.iter().map(|it| it.to_json().into()).collect();
        return Ok(Value::from(all).to_string());
    }
    Ok(table(&kernels, args.no_trunc))
}

fn table(kernels: &[Kernel], whole: bool) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "KERNEL",
        "CONTAINER",
        "IMAGE",
        "STATE",
        "AGE",
        "PID",
        "ADDRESS",
        "PORTS",
        "AGENT",
        "SLOTS",
    ]);
    let id = |id: &str| if whole { id } else { short(id) }.to_owned();
    for kernel in kernels {
        let it = &kernel.container;
        table.add_row([
            id(&kernel.id),
            id(&it.id.0),
            kernel.image.clone(),
            state(kernel),
            kernel.started_at.map(age).unwrap_or_default(),
            it.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            it.address.map(|it| it.to_string()).unwrap_or_default(),
            ports(kernel),
            agent(&kernel.agent, whole).to_owned(),
            kernel.slots_text(),
        ]);
    }
    table.trim_fmt()
}

fn state(kernel: &Kernel) -> String {
    let state = kernel.state();
    match kernel.container.exit {
        Some(exit) if exit.oom_killed => format!("{state} ({}, out of memory)", exit.code),
        Some(exit) => format!("{state} ({})", exit.code),
        None => state.to_owned(),
    }
}

/// The id of a run's agent is the kernel's once more.
fn agent(id: &str, whole: bool) -> &str {
    if id.starts_with("run-") && !whole {
        "run"
    } else {
        id
    }
}

fn ports(kernel: &Kernel) -> String {
    let ports = kernel.container.ports.iter();
    let ports = ports.map(|port| format!("{}->{}", port.host, port.container));
    ports.collect::<Vec<_>>().join(" ")
}
