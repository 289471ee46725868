//! The engines: the chosen one must serve; what the others say is information.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use super::Finding;
use super::storage::Probe;
use crate::backends::{self, Engine, EngineConfig};
use crate::cli::run::session::KERNELSPEC;
use crate::cli::{CommonArgs, RuntimeKind, node};
use crate::runtime::{ImageInfo, Result, RuntimeError, RuntimeInfo};
use crate::sys::program::{SYSTEM_PATH, find};

/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where dockerd looks besides.
const DOCKER_PROGRAMS: [&str; 4] = [
    "/usr/libexec/docker",
    "/usr/local/libexec/docker",
    "/usr/lib/docker",
    "/usr/local/lib/docker",
];
/// The shim of everything that has runc's command line.
const RUNC_SHIM: &str = "containerd-shim-runc-v2";

/// What was found out about the engines.
#[derive(Debug, Default)]
pub(super) struct Engines {
    /// The checks.
    pub findings: Vec<Finding>,
    /// Host ports of the chosen engine's kernels.
    pub held_ports: BTreeSet<u16>,
}

/// An engine's name.
pub(super) fn name(kind: RuntimeKind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// Asks every engine.
pub(super) async fn all(common: &CommonArgs) -> Engines {
    let mut all = Engines::default();
    for kind in [
        RuntimeKind::Youki,
        RuntimeKind::Containerd,
        RuntimeKind::Docker,
    ] {
        let chosen = kind == common.runtime;
        let config = if chosen {
            node::engine_config(common)
        } else {
            EngineConfig {
                state_dir: common.state_dir.clone(),
                run_dir: common.run_dir.clone(),
                ..EngineConfig::default()
            }
        };
        if chosen || kind != RuntimeKind::Youki {
            let mut lent = Lent::default();
            let answer = ask(kind, config, &mut lent).await;
            if let (true, Ok((engine, _))) = (chosen, &answer) {
                all.look_inside(engine).await;
            }
            let finding = judge(kind, answer.map(|(_, info)| info));
            all.findings.push(finding.needed(chosen));
        } else {
            let detail = "built in; needs no daemon";
            all.findings.push(Finding::info("engine-youki", detail));
        }
    }
    let is_chosen = |kind| common.runtime == kind;
    let programs: Vec<PathBuf> = SYSTEM_PATH.iter().map(PathBuf::from).collect();
    let runner = common.runtime_handler.as_deref();
    let containerd = handler(runner.unwrap_or("runc"), &programs);
    all.findings
        .push(containerd.needed(is_chosen(RuntimeKind::Containerd)));
    let mut programs = programs;
    programs.extend(DOCKER_PROGRAMS.iter().map(PathBuf::from));
    let here = common
        .runtime_endpoint
        .as_deref()
        .is_none_or(|it| !it.starts_with("tcp://"));
    let docker = docker_init(&programs);
    all.findings
        .push(docker.needed(is_chosen(RuntimeKind::Docker) && here));
    all
}

/// Folders that are not there are lent for as long as the engine is asked: looking makes nothing.
#[derive(Default)]
struct Lent(Vec<Probe>);

impl Lent {
    fn instead_of_missing(&mut self, config: &mut EngineConfig) -> Result<()> {
        for folder in [&mut config.state_dir, &mut config.run_dir] {
            if !folder.is_dir() {
                let probe = Probe::make(folder).map_err(|error| {
                    RuntimeError::Invalid(format!("cannot make {}: {error}", folder.display()))
                })?;
                folder.clone_from(&probe.0);
                self.0.push(probe);
            }
        }
        Ok(())
    }
}

async fn ask(
    kind: RuntimeKind,
    mut config: EngineConfig,
    lent: &mut Lent,
) -> Result<(Engine, RuntimeInfo)> {
    lent.instead_of_missing(&mut config)?;
    let asked = timeout(PATIENCE, async {
        let engine = backends::open(kind, config).await?;
        let info = engine.runtime.info().await?;
        Ok((engine, info))
    });
    asked.await.unwrap_or_else(|_| {
        Err(RuntimeError::Invalid(format!(
            "no answer within {} s",
            PATIENCE.as_secs()
        )))
    })
}

impl Engines {
    /// The chosen engine's kernels and images.
    async fn look_inside(&mut self, engine: &Engine) {
        if let Ok(Ok(containers)) = timeout(PATIENCE, engine.runtime.list()).await {
            let ports = containers.iter().flat_map(|it| &it.ports);
            self.held_ports.extend(ports.map(|port| port.host));
        }
        let images = timeout(PATIENCE, engine.images.list()).await;
        if let Ok(Ok(images)) = images {
            self.findings.push(kernel_images(&images));
        }
    }
}

fn judge(kind: RuntimeKind, answer: Result<RuntimeInfo>) -> Finding {
    let (check, remedy) = match kind {
        RuntimeKind::Youki => (
            "engine-youki",
            "run as root; --state-dir and --run-dir must be writable",
        ),
        RuntimeKind::Containerd => (
            "engine-containerd",
            "apt install containerd runc, start containerd, and run as root; --runtime-endpoint names another socket than /run/containerd/containerd.sock",
        ),
        RuntimeKind::Docker => (
            "engine-docker",
            "apt install docker.io, start dockerd, and run as root or in the group docker; --runtime-endpoint (or DOCKER_HOST) names another socket than /run/docker.sock",
        ),
    };
    match answer {
        Ok(info) => Finding::ok(check, format!("{} {}", info.name, info.version)),
        Err(error) => Finding::failed(check, with_cause(&error), remedy),
    }
}

fn with_cause(error: &RuntimeError) -> String {
    match std::error::Error::source(error) {
        Some(source) if !error.to_string().contains(&source.to_string()) => {
            format!("{error}: {source}")
        }
        _ => error.to_string(),
    }
}

fn kernel_images(images: &[ImageInfo]) -> Finding {
    let check = "images";
    let kernels = images
        .iter()
        .filter(|image| image.labels.contains_key(KERNELSPEC))
        .count();
    let detail = format!("{} images, {kernels} of kernels", images.len());
    if kernels > 0 {
        return Finding::ok(check, detail);
    }
    Finding::info(
        check,
        format!("{detail}; `backendai-agent image pull` and `image import` add some"),
    )
}

/// What runs containers below containerd: `runc`, a path, or a shim's name such as `io.containerd.runsc.v1`.
fn handler(name: &str, folders: &[PathBuf]) -> Finding {
    let check = "containerd-handler";
    let wanted = programs_of(name);
    let missing: Vec<&str> = wanted
        .iter()
        .map(String::as_str)
        .filter(|program| find(program, folders).is_none())
        .collect();
    if missing.is_empty() {
        return Finding::ok(check, wanted.join(", "));
    }
    Finding::failed(
        check,
        format!("not found: {}", missing.join(", ")),
        "apt install containerd runc, or name what is installed with --runtime-handler",
    )
}

fn programs_of(handler: &str) -> Vec<String> {
    let shim = |name: &str| format!("containerd-shim-{name}");
    if handler.starts_with('/') || matches!(handler, "runc" | "crun" | "youki") {
        return vec![handler.to_owned(), RUNC_SHIM.to_owned()];
    }
    // The last two words of a shim's name are its program's.
    let words: Vec<&str> = handler.rsplitn(3, '.').collect();
    match words.as_slice() {
        [version, name, _] => vec![shim(&format!("{name}-{version}"))],
        _ => vec![handler.to_owned(), shim(&format!("{handler}-v1"))],
    }
}

fn docker_init(folders: &[PathBuf]) -> Finding {
    let check = "docker-init";
    match find("docker-init", folders) {
        Some(path) => Finding::ok(check, path.display().to_string()),
        None => Finding::failed(
            check,
            "docker-init is not found, and kernels' containers are started by it",
            "apt install tini docker.io, or put tini under the name docker-init into /usr/local/bin",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Status;
    use super::*;
    use crate::runtime::LabelMap;

    fn programs(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().expect("a folder");
        for name in names {
            let path = root.path().join(name);
            std::fs::write(&path, "").expect("a file");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).expect("a mode");
        }
        let folders = vec![root.path().to_owned()];
        (root, folders)
    }

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    #[test]
    fn an_engine_that_does_not_answer_fails_with_how_to_start_it() {
        for (kind, word) in [
            (RuntimeKind::Youki, "root"),
            (RuntimeKind::Containerd, "containerd.sock"),
            (RuntimeKind::Docker, "docker.sock"),
        ] {
            let away = RuntimeError::Unavailable {
                engine: "engine",
                source: "no such file".into(),
            };
            let found = judge(kind, Err(away));
            assert_eq!(found.status, Status::Failed);
            assert!(found.detail.contains("no such file"), "{found:?}");
            assert!(remedy(&found).contains(word), "{found:?}");
        }
        let info = RuntimeInfo {
            name: "docker",
            version: "20.10".to_owned(),
        };
        let found = judge(RuntimeKind::Docker, Ok(info));
        assert_eq!(
            (found.status, found.detail.as_str()),
            (Status::Ok, "docker 20.10")
        );
    }

    #[test]
    fn a_handler_needs_its_program_and_its_shim() {
        let (_root, folders) = programs(&["runc", RUNC_SHIM]);
        assert_eq!(handler("runc", &folders).status, Status::Ok);
        let found = handler("crun", &folders);
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("crun") && remedy(&found).contains("--runtime-handler"));
        let (_root, folders) = programs(&["runc"]);
        assert!(handler("runc", &folders).detail.contains(RUNC_SHIM));
        let (root, folders) = programs(&["containerd-shim-runsc-v1", "mine", RUNC_SHIM]);
        assert_eq!(
            handler("io.containerd.runsc.v1", &folders).status,
            Status::Ok
        );
        let path = root.path().join("mine").display().to_string();
        assert_eq!(handler(&path, &folders).status, Status::Ok);
        assert_eq!(handler("/no/such", &folders).status, Status::Failed);
        assert_eq!(handler("runsc", &folders).status, Status::Failed);
    }

    #[test]
    fn a_docker_without_init_fails_with_the_package() {
        let (_root, folders) = programs(&[]);
        let found = docker_init(&folders);
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("tini"));
        let (_root, folders) = programs(&["docker-init"]);
        assert_eq!(docker_init(&folders).status, Status::Ok);
    }

    #[test]
    fn a_store_without_kernels_says_how_to_get_some() {
        let found = kernel_images(&[ImageInfo::default()]);
        assert_eq!(found.status, Status::Info);
        assert!(found.detail.contains("image pull"));
        let kernel = ImageInfo {
            labels: LabelMap::from([(KERNELSPEC.to_owned(), "1".to_owned())]),
            ..ImageInfo::default()
        };
        assert_eq!(kernel_images(&[kernel]).status, Status::Ok);
    }
}
