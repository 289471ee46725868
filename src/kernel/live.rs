//! A kernel's running container, as calls use it, and what the kernel keeps from one container to the next.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::parts::Parts;
use super::ports::KernelPorts;
use super::runner::Runner;
use super::runner::link::Endpoint;
use super::scratch::Scratch;
use crate::agent::request::{Created, KernelId};
use crate::resource::alloc::AllocationLease;
use crate::resource::port::PortLease;
use crate::resource::spec::ResourceSpec;
use crate::runtime::{ContainerId, ContainerInfo, LabelMap, Pid};

/// What stays over a restart.
#[derive(Debug)]
pub struct Held {
    /// Folders.
    pub scratch: Scratch,
    /// Amounts.
    pub allocation: AllocationLease,
    /// What `resource.txt` says.
    pub resource: ResourceSpec,
    /// Labels of the image.
    pub labels: LabelMap,
}

/// One container of a kernel.
#[derive(Debug)]
pub struct Live {
    /// The kernel.
    pub kernel: KernelId,
    /// The container.
    pub container: ContainerId,
    /// Its first process on the host, where the engine tells.
    pub pid: Option<Pid>,
    /// Its cgroup below the root of every hierarchy, where the engine tells.
    pub cgroup: Option<PathBuf>,
    /// Folders.
    pub scratch: Scratch,
    /// Host ports.
    pub ports: KernelPorts,
    /// The runner inside.
    pub runner: Runner,
    /// Cancelled when the container is ended.
    pub token: CancellationToken,
}

/// A container together with the ports it holds.
#[derive(Debug)]
pub struct Container {
    /// The container.
    pub live: Arc<Live>,
    /// Its ports.
    pub ports: PortLease,
}

impl Live {
    /// A running container of a kernel, its runner not connected yet.
    #[must_use]
    pub fn new(
        parts: &Parts,
        kernel: &KernelId,
        info: &ContainerInfo,
        scratch: Scratch,
        ports: KernelPorts,
    ) -> Arc<Self> {
        let token = parts.stop.child_token();
        let endpoint = Endpoint {
            host: parts.runner_host.clone(),
            ops: ports.repl_in,
            records: ports.repl_out,
        };
        let runner = Runner::new(
            kernel.clone(),
            endpoint,
            Arc::clone(&parts.connect),
            token.clone(),
            parts.tracker.clone(),
        );
        Arc::new(Self {
            kernel: kernel.clone(),
            container: info.id.clone(),
            pid: info.pid,
            cgroup: info.cgroup.clone(),
            scratch,
            ports,
            runner,
            token,
        })
    }

    /// What the manager is told of it.
    #[must_use]
    pub fn created(&self, parts: &Parts, resource: &ResourceSpec) -> Created {
        Created {
            kernel: self.kernel.clone(),
            host: parts.kernel_host.clone(),
            repl_in_port: self.ports.repl_in,
            repl_out_port: self.ports.repl_out,
            stdin_port: self.ports.stdin,
            stdout_port: self.ports.stdout,
            services: self.ports.services.clone(),
            container: self.container.0.clone(),
            resource_spec: resource.to_json(&parts.allocator),
        }
    }
}

/// When a kernel was last used.
#[derive(Debug)]
pub struct LastUsed(Mutex<Instant>);

impl LastUsed {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// It is used now.
    pub fn touch(&self) {
        *self.0.lock().expect("no panic while held") = Instant::now();
    }

    /// When it was.
    #[must_use]
    pub fn get(&self) -> Instant {
        *self.0.lock().expect("no panic while held")
    }
}
