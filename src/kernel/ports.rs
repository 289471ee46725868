//! A kernel's ports on the host, by their purpose.

use super::spec::{KernelSpec, REPL_IN, REPL_OUT, TERMINAL};
use crate::agent::request::ServicePort;
use crate::runtime::PortBinding;

/// Host ports of a kernel by their purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPorts {
    /// Every forwarded port.
    pub bindings: Vec<PortBinding>,
    /// The runner's command socket.
    pub repl_in: u16,
    /// The runner's output socket.
    pub repl_out: u16,
    /// The terminal's input, 0 without one.
    pub stdin: u16,
    /// The terminal's output, 0 without one.
    pub stdout: u16,
    /// Service ports with their host ports.
    pub services: Vec<ServicePort>,
}

impl KernelPorts {
    /// Sorts forwarded ports by their purpose; a port that is not forwarded counts as 0.
    #[must_use]
    pub fn new(spec: &KernelSpec, bindings: Vec<PortBinding>) -> Self {
        let host = |port: u16| {
            bindings
                .iter()
                .find(|b| b.container == port)
                .map_or(0, |b| b.host)
        };
        let services = spec.services.iter().cloned();
        Self {
            repl_in: host(REPL_IN),
            repl_out: host(REPL_OUT),
            stdin: host(TERMINAL[0]),
            stdout: host(TERMINAL[1]),
            services: services
                .map(|s| ServicePort {
                    host_port: host(s.container_port),
                    ..s
                })
                .collect(),
            bindings,
        }
    }

    /// Deals `host` ports to the image's ports in order.
    #[must_use]
    pub fn deal(spec: &KernelSpec, host: &[u16]) -> Self {
        let ports = spec.ports().into_iter().zip(host);
        Self::new(
            spec,
            ports
                .map(|(container, host)| PortBinding {
                    host: *host,
                    container,
                })
                .collect(),
        )
    }
}
