//! What dockerd tells about containers, in the words of the contract.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, NetworkSettings, PortMap,
};
use bollard::query_parameters::InspectContainerOptions;

use super::{Docker, LABEL_ATTEMPT, adoption, known, not_found, there};
use crate::runtime::cgroup;
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerState, ExitStatus, LABEL_OWNER, OWNER, Pid, PortBinding,
    Result,
};

impl Docker {
    /// dockerd's own record.
    pub(super) async fn raw(&self, id: &ContainerId) -> Result<ContainerInspectResponse> {
        known(id)?;
        let call = self
            .client
            .api
            .inspect_container(&id.0, None::<InspectContainerOptions>);
        let action = format!("looking at container {id}");
        self.client.ask(action, call).await.map_err(not_found(id))
    }

    pub(super) async fn look_at(&self, id: &ContainerId) -> Result<ContainerInfo> {
        let raw = self.raw(id).await?;
        let mut info = info(id, &raw);
        if let Some(adoption) = &self.adoption {
            adoption.label(&mut info);
        }
        if let (ContainerState::Created, Some(signal)) = (info.state, self.notes.killed_early(id)) {
            info.state = ContainerState::Stopped;
            info.exit = Some(ExitStatus {
                code: 128 + signal,
                oom_killed: false,
            });
        }
        if let Some(exit) = &mut info.exit {
            exit.oom_killed |= self.notes.is_out_of_memory(id);
        }
        if self.own_cgroups {
            let parent = raw.host_config.and_then(|host| host.cgroup_parent);
            let parent = parent
                .filter(|path| path.starts_with('/'))
                .map(PathBuf::from);
            if let (Some(exit), Some(parent)) = (&mut info.exit, &parent) {
                exit.oom_killed |= self.cgroups.oom_killed(parent);
            }
            // Its totals outlive the container.
            info.cgroup = parent.or(info.cgroup);
        }
        Ok(info)
    }

    pub(super) async fn list_ours(&self) -> Result<Vec<ContainerInfo>> {
        let all = self.client.containers("listing containers", None).await?;
        let ours = all.into_iter().filter_map(|summary| {
            let labels = summary.labels.unwrap_or_default();
            let labelled = labels.get(LABEL_OWNER).is_some_and(|owner| owner == OWNER);
            let named = self.adoption.is_some()
                && summary
                    .names
                    .iter()
                    .flatten()
                    .any(|name| adoption::kernel(name.trim_start_matches('/')).is_some());
            (labelled || named).then_some(ContainerId(summary.id?))
        });
        let mut found = there(ours, |id| async move { self.look_at(&id).await }).await?;
        found.retain(ContainerInfo::is_ours);
        Ok(found)
    }
}

/// dockerd's record in the words of the contract.
pub(super) fn info(id: &ContainerId, raw: &ContainerInspectResponse) -> ContainerInfo {
    let config = raw.config.as_ref();
    let state = state(raw);
    let labels = config.and_then(|config| config.labels.clone());
    let mut labels: crate::runtime::LabelMap = labels.into_iter().flatten().collect();
    labels.remove(LABEL_ATTEMPT);
    let pid = raw.state.as_ref().and_then(|state| state.pid);
    let pid = pid
        .and_then(|pid| Pid::try_from(pid).ok())
        .filter(|pid| *pid > 0);
    let network = raw.network_settings.as_ref();
    let asked = raw
        .host_config
        .as_ref()
        .and_then(|host| host.port_bindings.as_ref());
    // What is forwarded is known while it runs; before and after, only what was asked for.
    let ports = match state {
        ContainerState::Running => network.and_then(|network| network.ports.as_ref()),
        _ => asked,
    };
    ContainerInfo {
        id: id.clone(),
        name: raw
            .name
            .as_deref()
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        image: config
            .and_then(|config| config.image.clone())
            .unwrap_or_default(),
        state,
        labels,
        pid,
        cgroup: pid.and_then(cgroup::of),
        address: network.and_then(address),
        ports: ports.map(bindings).unwrap_or_default(),
        exit: (state == ContainerState::Stopped).then(|| exit(raw)),
    }
}

fn state(raw: &ContainerInspectResponse) -> ContainerState {
    use ContainerStateStatusEnum as S;
    match raw.state.as_ref().and_then(|state| state.status) {
        Some(S::RUNNING | S::PAUSED | S::RESTARTING) => ContainerState::Running,
        Some(S::CREATED) => ContainerState::Created,
        _ => ContainerState::Stopped,
    }
}

fn exit(raw: &ContainerInspectResponse) -> ExitStatus {
    let state = raw.state.as_ref();
    let code = state.and_then(|state| state.exit_code).unwrap_or_default();
    ExitStatus {
        code: i32::try_from(code).unwrap_or(i32::MAX),
        oom_killed: state.and_then(|state| state.oom_killed).unwrap_or(false),
    }
}

/// Forwarded ports in the order of the container's ports; with IPv6 each is told twice.
fn bindings(ports: &PortMap) -> Vec<PortBinding> {
    let mut all: Vec<PortBinding> = ports
        .iter()
        .filter_map(|(container, hosts)| {
            let container = container.strip_suffix("/tcp")?.parse().ok()?;
            let hosts = hosts.iter().flatten();
            let host = hosts
                .filter_map(|host| host.host_port.as_deref()?.parse().ok())
                .next()?;
            Some(PortBinding { host, container })
        })
        .collect();
    all.sort_unstable_by_key(|port| port.container);
    all
}

fn address(network: &NetworkSettings) -> Option<Ipv4Addr> {
    let networks = network.networks.as_ref()?;
    networks
        .values()
        .find_map(|network| network.ip_address.as_deref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(state: serde_json::Value) -> ContainerInfo {
        let raw = json!({
            "Name": "/kernel.python.1",
            "Config": {"Image": "index.docker.io/lablup/python:3.6", "Labels": {"l": "v", LABEL_ATTEMPT: "0a"}},
            "State": state,
            "HostConfig": {"PortBindings": {"8080/tcp": [{"HostPort": "30003"}], "2000/tcp": [{"HostIp": "", "HostPort": "30001"}]}},
            "NetworkSettings": {
                "Ports": {
                    "8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "30003"}, {"HostIp": "::", "HostPort": "30003"}],
                    "2000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "30001"}],
                    "9000/tcp": null,
                },
                "Networks": {"bridge": {"IPAddress": "172.17.0.2"}},
            },
        });
        let raw = serde_json::from_value(raw).expect("a record");
        info(&ContainerId("c8".repeat(32)), &raw)
    }

    #[test]
    fn a_running_container_tells_what_is_forwarded_once_and_in_order() {
        let info = told(json!({"Status": "running", "Pid": 0, "ExitCode": 0}));
        assert_eq!((info.state, info.exit), (ContainerState::Running, None));
        let ports: Vec<_> = info
            .ports
            .iter()
            .map(|port| (port.container, port.host))
            .collect();
        assert_eq!(ports, [(2000, 30001), (8080, 30003)]);
        assert_eq!(info.address, Some(Ipv4Addr::new(172, 17, 0, 2)));
        assert_eq!((info.name.as_str(), info.pid), ("kernel.python.1", None));
        assert_eq!(info.labels, [("l".to_owned(), "v".to_owned())].into());
    }

    #[test]
    fn every_end_is_an_end() {
        for status in ["exited", "dead", "removing"] {
            let info = told(json!({"Status": status, "ExitCode": 137, "OOMKilled": true}));
            let exit = ExitStatus {
                code: 137,
                oom_killed: true,
            };
            assert_eq!(
                (info.state, info.exit),
                (ContainerState::Stopped, Some(exit))
            );
        }
        for status in ["paused", "restarting"] {
            assert_eq!(
                told(json!({"Status": status})).state,
                ContainerState::Running
            );
        }
        assert_eq!(
            told(json!({"Status": "created"})).state,
            ContainerState::Created
        );
    }
}
