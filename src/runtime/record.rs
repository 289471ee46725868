//! What engines without a record of their own keep of a container, and the names of those that are being made.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchies;
use super::{
    ContainerId, ContainerInfo, ContainerSpec, ContainerState, ExitStatus, LabelMap, Pid,
    PortBinding,
};

/// Who a container is: all that a later agent must know of it, whatever its engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Canonical reference of its image.
    pub image: String,
    /// Its labels.
    pub labels: LabelMap,
    /// Host and container port of each forwarded port.
    pub ports: Vec<(u16, u16)>,
    /// Its address on the bridge.
    pub address: Option<Ipv4Addr>,
    /// Its cgroup, below the root of every hierarchy.
    pub cgroup: PathBuf,
}

impl Record {
    /// The record of a container that is being made.
    #[must_use]
    pub fn new(spec: &ContainerSpec, cgroup: PathBuf, address: Option<Ipv4Addr>) -> Self {
        let ports = spec.ports.iter();
        Self {
            name: spec.name.clone(),
            image: spec.image.clone(),
            labels: spec.labels.clone(),
            ports: ports.map(|port| (port.host, port.container)).collect(),
            address,
            cgroup,
        }
    }

    /// What is told of the container.
    #[must_use]
    pub fn info(
        self,
        id: ContainerId,
        state: ContainerState,
        pid: Option<Pid>,
        exit: Option<ExitStatus>,
    ) -> ContainerInfo {
        let binding = |(host, container)| PortBinding { host, container };
        ContainerInfo {
            id,
            name: self.name,
            image: self.image,
            state,
            labels: self.labels,
            pid: pid.filter(|_| state != ContainerState::Stopped),
            cgroup: Some(self.cgroup),
            address: self.address,
            ports: self.ports.into_iter().map(binding).collect(),
            exit,
        }
    }

    /// How the container ended, with what Linux says of memory. Without a code it ended with the machine, or with its
    /// parent, and was killed.
    #[must_use]
    pub fn ended(&self, code: Option<i32>) -> ExitStatus {
        let hierarchies = Hierarchies::read();
        ExitStatus {
            code: code.unwrap_or(137),
            oom_killed: hierarchies.is_ok_and(|all| all.oom_killed(&self.cgroup)),
        }
    }
}

/// The names of containers that are being made.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashSet<String>>);

/// A name that nobody else may give until this is dropped.
#[derive(Debug)]
pub struct Claim<'a>(&'a Names, String);

impl Names {
    /// Takes a name; `None` when another container gets it at this moment.
    pub fn claim(&self, name: &str) -> Option<Claim<'_>> {
        let new = self.held().insert(name.to_owned());
        new.then(|| Claim(self, name.to_owned()))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.held().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_containers_until_it_is_made() {
        let names = Names::default();
        let claim = names.claim("a").expect("free");
        assert!(names.claim("a").is_none() && names.claim("b").is_some());
        drop(claim);
        assert!(names.claim("a").is_some());
    }

    #[test]
    fn the_dead_have_no_first_process() {
        let record = Record {
            name: "a".to_owned(),
            image: "r.io/a:1".to_owned(),
            labels: LabelMap::new(),
            ports: vec![(30000, 80)],
            address: None,
            cgroup: "/backendai/a".into(),
        };
        for (state, pid) in [
            (ContainerState::Running, Some(7)),
            (ContainerState::Stopped, None),
        ] {
            let id = ContainerId("a".to_owned());
            let info = record.clone().info(id, state, Some(7), None);
            assert_eq!((info.pid, info.ports[0].host), (pid, 30000));
        }
    }
}
