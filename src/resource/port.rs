//! The node's pool of host ports, as leases that free themselves.
//!
//! A leased port is bound (and not listened on) for as long as the lease lives, so that no other program takes it;
//! forwarding rules act before a packet would reach that socket. An engine that listens itself (Docker's proxy) has the
//! sockets released first. Other agents and runs on this host would take such a port then, so each leased port is also
//! a name in the host's abstract sockets, which only they look at.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketAddrV4, SocketFlags, SocketType, bind, socket_with,
};

use crate::agent::AgentError;

/// The ports of one range that nobody holds. Clones share the pool.
#[derive(Clone, Debug)]
pub struct PortPool {
    range: RangeInclusive<u16>,
    /// Held for a few lines only, never across an await.
    free: Arc<Mutex<BTreeSet<u16>>>,
}

/// Held ports; dropping it gives them back.
#[derive(Debug)]
pub struct PortLease {
    pool: PortPool,
    ports: Vec<u16>,
    sockets: Vec<OwnedFd>,
    /// What other agents see of it.
    _marks: Vec<OwnedFd>,
}

impl PortPool {
    /// All ports of the range are free.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self {
            free: Arc::new(Mutex::new(range.clone().collect())),
            range,
        }
    }

    /// Takes `wanted` ports that no other program of the host uses, lowest first, or none at all.
    ///
    /// # Errors
    /// [`AgentError::PortsExhausted`] when there are too few.
    pub fn lease(&self, wanted: usize) -> Result<PortLease, AgentError> {
        let mut free = self.free.lock().expect("no panic while held");
        let (mut ports, mut sockets, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for port in free.iter().copied() {
            if ports.len() == wanted {
                break;
            }
            // A port that another program holds stays in the pool: that program may end.
            if let (Ok(mark), Ok(socket)) = (mark(port), hold(port)) {
                ports.push(port);
                sockets.push(socket);
                marks.push(mark);
            }
        }
        if ports.len() < wanted {
            return Err(AgentError::PortsExhausted {
                wanted,
                free: ports.len(),
            });
        }
        for port in &ports {
            free.remove(port);
        }
        Ok(PortLease {
            pool: self.clone(),
            ports,
            sockets,
            _marks: marks,
        })
    }

    /// Takes exactly these ports, for a kernel that was there before the agent was. Ports outside the range are part
    /// of the lease but never enter the pool.
    #[must_use]
    pub fn adopt(&self, ports: &[u16]) -> PortLease {
        let mut free = self.free.lock().expect("no panic while held");
        for port in ports {
            free.remove(port);
        }
        let sockets = ports.iter().filter_map(|port| hold(*port).ok()).collect();
        PortLease {
            pool: self.clone(),
            ports: ports.to_vec(),
            sockets,
            _marks: ports.iter().filter_map(|port| mark(*port).ok()).collect(),
        }
    }

    /// How many ports nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.lock().expect("no panic while held").len()
    }
}

impl PortLease {
    /// The ports, lowest first unless adopted.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Closes the sockets that hold the ports, for an engine that listens on them itself.
    pub fn release_sockets(&mut self) {
        self.sockets.clear();
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.sockets.clear();
        let mut free = self.pool.free.lock().expect("no panic while held");
        free.extend(
            self.ports
                .iter()
                .filter(|port| self.pool.range.contains(port)),
        );
    }
}

/// Whether no program of the host uses this port.
#[must_use]
pub fn is_free(port: u16) -> bool {
    hold(port).is_ok()
}

/// Tells other agents of this network namespace that a port is taken, whoever listens on it.
fn mark(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let name = format!("backendai-agent/port/{port}");
    bind(
        &socket,
        &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    )?;
    Ok(socket)
}

/// Binds a port on all addresses without listening.
fn hold(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Without SO_REUSEADDR: with it on both sides Linux would let another program bind and listen.
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A range of `n` ports that are free just now.
    fn range(n: u16) -> RangeInclusive<u16> {
        loop {
            let probe = TcpListener::bind("0.0.0.0:0").expect("a port");
            let first = probe.local_addr().expect("bound").port();
            drop(probe);
            if first < 60_000
                && (first..first + n).all(|port| TcpListener::bind(("0.0.0.0", port)).is_ok())
            {
                return first..=first + n - 1;
            }
        }
    }

    #[test]
    fn a_lease_takes_all_or_nothing_and_gives_back() {
        let pool = PortPool::new(range(3));
        let two = pool.lease(2).expect("room");
        assert!(matches!(
            pool.lease(2),
            Err(AgentError::PortsExhausted { wanted: 2, free: 1 })
        ));
        assert_eq!(pool.free(), 1);
        drop(two);
        assert_eq!(pool.lease(3).expect("all are back").ports().len(), 3);
    }

    #[test]
    fn a_port_that_another_program_listens_on_is_passed_over() {
        let ports = range(2);
        let taken = TcpListener::bind(("0.0.0.0", *ports.start())).expect("free a moment ago");
        let pool = PortPool::new(ports.clone());
        assert_eq!(pool.lease(1).expect("one is free").ports(), [*ports.end()]);
        assert!(pool.lease(2).is_err());
        drop(taken);
        assert!(pool.lease(2).is_ok());
    }

    #[test]
    fn a_leased_port_is_not_to_be_had_by_others_until_released() {
        let ports = range(1);
        let mut lease = PortPool::new(ports.clone()).lease(1).expect("room");
        assert!(TcpListener::bind(("0.0.0.0", *ports.start())).is_err());
        lease.release_sockets();
        assert!(TcpListener::bind(("0.0.0.0", *ports.start())).is_ok());
    }

    #[test]
    fn a_port_released_to_an_engine_is_not_given_by_another_agent_before_it_listens() {
        let ports = range(2);
        let (one, other) = (PortPool::new(ports.clone()), PortPool::new(ports.clone()));
        let mut lease = one.lease(1).expect("room");
        lease.release_sockets();
        let next = other.lease(1).expect("room");
        assert_eq!(next.ports(), [*ports.end()]);
        drop(lease);
        assert_eq!(
            other.lease(1).expect("it is back").ports(),
            [*ports.start()]
        );
    }

    #[test]
    fn adopted_ports_outside_the_range_never_enter_the_pool() {
        let ports = range(1);
        let pool = PortPool::new(ports.clone());
        let adopted = pool.adopt(&[*ports.start(), 9]);
        assert_eq!(pool.free(), 0);
        drop(adopted);
        assert_eq!(pool.free(), 1);
    }
}
