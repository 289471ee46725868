//! `backendai-agent doctor`: whether this machine can run kernels, and what to do about what keeps it from that.
//!
//! A check is a small function that takes the files or answers it judges, so that tests can give it a broken world. The
//! probes that are real (a mount, a link, a rule) are undone at once and disturb nobody.

pub mod cgroup;
pub mod engine;
pub mod finding;
pub mod linux;
pub mod network;
pub mod privilege;
pub mod storage;

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

pub use self::finding::{Finding, Status};
use super::{CommonArgs, RuntimeKind};
use crate::config::KernelOptions;

/// Check whether this machine can run kernels, and say how to mend what keeps it from that.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = JSON_HELP)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Folder of the kernels' scratch folders [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
    /// Host ports for kernels, both ends included [default: 30000-31000]
    #[arg(long, value_name = "LOW-HIGH", env = "BACKEND_CONTAINER_PORT_RANGE")]
    pub container_port_range: Option<String>,
    /// What kept an ordinary user from the namespaces in which it is root.
    #[arg(skip)]
    pub refused: Option<String>,
}

/// The names in the JSON, which do not change.
const JSON_HELP: &str = "Run it as the user that the agent runs as. The exit status is 0 when nothing failed; warnings and information are \
no failure.

JSON: an object with these names.
  ok       whether nothing failed
  engine   the engine that was chosen
  checks   list of {check, status, detail, remedy}:
             check    name of the check
             status   ok, info, warning or failed
             detail   what there is
             remedy   what to do about it, or null";

/// What the chosen engine leaves to the agent, and so to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// It makes containers itself: mounts, namespaces, cgroups.
    pub containers: bool,
    /// It connects them and forwards ports itself.
    pub network: bool,
}

impl Needs {
    fn of(kind: RuntimeKind) -> Self {
        Self {
            containers: kind == RuntimeKind::Youki,
            network: kind != RuntimeKind::Docker,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the report cannot be printed.
pub async fn main(
    args: &DoctorArgs,
    common: CommonArgs,
    kernel: KernelOptions,
) -> anyhow::Result<ExitCode> {
    let engine = engine::name(common.runtime);
    let findings = examine(common, kernel, args.refused.clone()).await?;
    let text = if args.json {
        report_json(&engine, &findings).to_string() + "\n"
    } else {
        report(&engine, &findings)
    };
    super::print(&text)?;
    Ok(if failed(&findings) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Every check, in the order in which they build on each other.
async fn examine(
    common: CommonArgs,
    kernel: KernelOptions,
    refused: Option<String>,
) -> anyhow::Result<Vec<Finding>> {
    let needs = Needs::of(common.runtime);
    let engines = engine::all(&common).await;
    let theirs = engines.held_ports;
    let work = move || {
        let proc = Path::new("/proc");
        let mut all = privilege::all(needs, refused);
        all.extend(linux::all(proc, needs));
        let base = crate::rootless::current().map(crate::rootless::Rootless::cgroup);
        let root = Path::new(crate::sys::cgroup::ROOT);
        match base.transpose() {
            Ok(base) => all.extend(cgroup::all(root, base.unwrap_or(Path::new("/")))),
            Err(error) => all.push(cgroup::none(&error)),
        }
        all.extend(storage::all(&common, &kernel.scratch_root, needs));
        all.extend(network::all(proc, &kernel.ports, &theirs, needs));
        all
    };
    let mut all = tokio::task::spawn_blocking(work).await?;
    all.extend(engines.findings);
    Ok(all)
}

fn failed(findings: &[Finding]) -> bool {
    findings.iter().any(|it| it.status == Status::Failed)
}

/// The report for people: a line for each check, and the remedy below what is not well.
fn report(engine: &str, findings: &[Finding]) -> String {
    let mut text = format!("engine {engine}\n");
    for it in findings {
        let status = it.status.as_str();
        text.push_str(&format!("{status:<8} {:<20} {}\n", it.check, it.detail));
        if let Some(remedy) = &it.remedy {
            text.push_str(&format!("{:<8} {:<20} remedy: {remedy}\n", "", ""));
        }
    }
    let count = |status: Status| findings.iter().filter(|it| it.status == status).count();
    let (failures, warnings) = (count(Status::Failed), count(Status::Warning));
    text.push_str(&format!("{failures} failed, {warnings} warnings\n"));
    text
}

fn report_json(engine: &str, findings: &[Finding]) -> Value {
    let checks: Vec<Value> = findings.iter().map(Finding::to_json).collect();
    json!({ "ok": !failed(findings), "engine": engine, "checks": checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("one", "fine"),
            Finding::warning("two", "so so", "better it"),
            Finding::failed("three", "broken", "mend it"),
        ]
    }

    #[test]
    fn only_a_failure_makes_the_whole_fail() {
        let all = findings();
        assert!(failed(&all));
        assert!(!failed(&all[..2]));
        let all = [all[2].clone().needed(false)];
        assert!(!failed(&all), "what is not needed cannot fail");
        assert_eq!(all[0].status, Status::Info);
    }

    #[test]
    fn the_report_has_every_check_and_every_remedy() {
        let text = report("youki", &findings());
        for part in ["fine", "better it", "mend it", "1 failed, 1 warnings"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let value = report_json("youki", &findings());
        assert_eq!(value["ok"], false);
        assert_eq!(value["checks"][2]["remedy"], "mend it");
        assert_eq!(value["checks"][0]["remedy"], Value::Null);
    }
}
