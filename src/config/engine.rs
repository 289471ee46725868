//! Which engine, where it is and where it keeps its things: what holds for every subcommand.

use std::path::{Path, PathBuf};

use super::{Settings, absolute, environment, is_system};
use crate::cli::{CommonArgs, RuntimeKind};

impl Settings {
    /// What holds for every subcommand.
    pub fn common(&mut self) -> CommonArgs {
        let (state, run) = standard_folders();
        let runtime = self.parse(
            "runtime",
            RuntimeKind::default(),
            "docker, containerd or youki",
            |text| <RuntimeKind as clap::ValueEnum>::from_str(text, false).ok(),
        );
        let docker = docker_of(runtime, environment);
        CommonArgs {
            runtime,
            runtime_endpoint: self.text("runtime-endpoint").or(docker.host),
            runtime_tls: docker.certificates,
            runtime_handler: self.text("runtime-handler"),
            snapshotter: self.text("snapshotter"),
            state_dir: self.path("state-dir").map_or(state, absolute),
            run_dir: self.path("run-dir").map_or(run, absolute),
        }
    }
}

/// What the variables of Docker's own commands say.
#[derive(Debug, Default, PartialEq, Eq)]
struct DockerVariables {
    host: Option<String>,
    certificates: Option<PathBuf>,
}

/// Docker's variables, for the engine that they are for: `DOCKER_HOST`, `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH`.
fn docker_of(runtime: RuntimeKind, variable: impl Fn(&str) -> Option<String>) -> DockerVariables {
    if runtime != RuntimeKind::Docker {
        return DockerVariables::default();
    }
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let folder = || {
        let named = given("DOCKER_CERT_PATH").or_else(|| given("DOCKER_CONFIG"));
        let named = named.map(PathBuf::from);
        named.or_else(|| Some(PathBuf::from(given("HOME")?).join(".docker")))
    };
    DockerVariables {
        host: given("DOCKER_HOST"),
        certificates: given("DOCKER_TLS_VERIFY").and_then(|_| folder()),
    }
}

/// State and run folder: the system's for root, the user's own otherwise, also for one who is root in namespaces only.
fn standard_folders() -> (PathBuf, PathBuf) {
    let name = "backendai-agent";
    let system = (
        Path::new("/var/lib").join(name),
        Path::new("/run").join(name),
    );
    if is_system() {
        return system;
    }
    let folder = |variable| environment(variable).map(PathBuf::from);
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    let state = data.map_or(system.0, |folder| folder.join(name));
    let run = folder("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |dir| dir.join(name));
    (state, run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_variables_are_for_docker_alone() {
        let given = |name: &str| {
            let value = match name {
                "DOCKER_HOST" => "tcp://h:2376",
                "DOCKER_TLS_VERIFY" => "1",
                "HOME" => "/home/u",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let found = docker_of(RuntimeKind::Docker, given);
        assert_eq!(found.host.as_deref(), Some("tcp://h:2376"));
        assert_eq!(found.certificates, Some("/home/u/.docker".into()));
        let other = docker_of(RuntimeKind::Youki, given);
        assert_eq!(other, DockerVariables::default());
        let named = |name: &str| match name {
            "DOCKER_CERT_PATH" => Some("/certs".to_owned()),
            "DOCKER_TLS_VERIFY" => Some("1".to_owned()),
            _ => None,
        };
        let found = docker_of(RuntimeKind::Docker, named);
        assert_eq!(found.certificates, Some("/certs".into()));
        let plain = |name: &str| (name == "DOCKER_CERT_PATH").then(|| "/certs".to_owned());
        assert_eq!(
            docker_of(RuntimeKind::Docker, plain),
            DockerVariables::default()
        );
    }
}
