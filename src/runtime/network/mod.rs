//! Bridge, network namespaces and port forwarding for engines without a network of their own (containerd, youki).
//!
//! Each container gets a network namespace bound to `<run-dir>/netns/<id>`, a veth pair whose host end is a port of the
//! agent's bridge, and an address. Forwarding is one nftables table of our own that always follows the records in
//! `<run-dir>/network/`: rules that somebody flushed come back with the next change or with [`Network::ensure`], and
//! several agents' processes may share a run directory. With the last container the table, the bridge and everything
//! else go away.
//!
//! Most of what a connection takes is waiting for Linux, so containers that come or go at once do it side by side: only
//! the choice of address and ports is made one after the other, and one write of the rules serves all who wait for it.
//!
//! An ordinary user's agent has all of that in a network namespace of its own (`outer`): `bridge` is what is done there, and
//! what stands here is the way to it, and that of the host's ports.

mod bridge;
mod firewall;
mod links;
mod outer;
mod rules;
mod store;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::PortBinding;
use crate::sys::{netns, userns};
pub use outer::Outer;
use rules::Rules;
use store::Store;

/// Why a container could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Another container has this host port.
    #[error("host port {port} is forwarded to container {holder} already")]
    PortTaken {
        /// The port.
        port: u16,
        /// The container that has it.
        holder: String,
    },
    /// The container has a connection already.
    #[error("container {0} is connected already; disconnect it first")]
    Connected(String),
    /// The text cannot name a container's files.
    #[error("{0:?} cannot be a container's id here: it is not a plain file name")]
    InvalidId(String),
    /// Every address of the subnet is given away.
    #[error("no free address in {0}; choose a larger subnet")]
    AddressesExhausted(Ipv4Net),
    /// No candidate subnet is unused on this host.
    #[error("every candidate subnet is in use on this host; name one in the configuration")]
    NoSubnet,
    /// Linux refused a step on links, addresses or routes.
    #[error("cannot {action}")]
    Netlink {
        /// The step, with the object's name.
        action: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The program `nft` failed or is missing.
    #[error("cannot change the firewall: {0}; is the package nftables installed?")]
    Firewall(String),
    /// A network namespace of ours has no way out.
    #[error(
        "containers have no way out: {0}; install the package passt (program pasta) or slirp4netns"
    )]
    WayOut(String),
    /// The program that listens on a container's host ports does not.
    #[error("the ports of container {id} are not forwarded: {said}")]
    Listener {
        /// The container.
        id: String,
        /// What it said.
        said: String,
    },
    /// A file, mount or thread failed.
    #[error("cannot {action}")]
    Host {
        /// The step, with the object's name.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Several steps of an undoing failed; all were tried.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<NetworkError>),
}

impl NetworkError {
    fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Host { action, source }
    }

    fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let action = action.into();
        move |source| Self::Netlink { action, source }
    }
}

/// How the bridge is called and addressed.
#[derive(Clone, Debug, Default)]
pub struct NetworkConfig {
    /// Name of the bridge and of the nftables table; by default derived from the run directory.
    pub name: Option<String>,
    /// Addresses of the bridge (its first) and of the containers; by default the first candidate that nothing on this
    /// host uses.
    pub subnet: Option<Ipv4Net>,
    /// The network namespace of an ordinary user's agent, where the bridge is then; by default it is on the host itself.
    pub outer: Option<Outer>,
}

/// A container's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its network namespace, as a file to enter.
    pub netns: PathBuf,
    /// Host end of its veth pair.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// Its forwarded ports, each as host and container port.
    pub ports: Vec<(u16, u16)>,
}

/// The agent's network. Clones are cheap and share everything; other processes on the same run directory do too.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    rules: Rules,
}

impl Network {
    /// Reads nothing and changes nothing yet.
    ///
    /// # Errors
    /// When the folder for the records cannot be made.
    pub fn open(run_dir: &Path, config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self(Arc::new(Shared {
            store: Store::open(run_dir, config)?,
            rules: Rules::default(),
        })))
    }

    /// Makes a namespace with an address for container `id` and forwards its ports, also from 127.0.0.1. Undoes itself
    /// on failure; once it has begun it runs to its end even when the caller goes away.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`], [`NetworkError::Connected`], [`NetworkError::InvalidId`],
    /// [`NetworkError::AddressesExhausted`], or what Linux or `nft` refused.
    pub async fn attach(
        &self,
        id: &str,
        ports: &[PortBinding],
    ) -> Result<Attachment, NetworkError> {
        let (network, id, ports) = (self.clone(), id.to_owned(), ports.to_vec());
        blocking(move || network.attach_blocking(&id, &ports)).await
    }

    /// [`Self::attach`] for those who may block and must not wait for a place among those who do.
    ///
    /// # Errors
    /// Those of [`Self::attach`].
    pub fn attach_blocking(
        &self,
        id: &str,
        ports: &[PortBinding],
    ) -> Result<Attachment, NetworkError> {
        let ports = ports.iter().map(|p| (p.host, p.container)).collect();
        self.0.attach(id, ports)
    }

    /// Takes a container's connection away, and the bridge and the table with the last one. Absent is done.
    ///
    /// # Errors
    /// Everything that went wrong; every step is tried nevertheless.
    pub async fn detach(&self, id: &str) -> Result<(), NetworkError> {
        let (network, id) = (self.clone(), id.to_owned());
        blocking(move || network.detach_blocking(&id)).await
    }

    /// [`Self::detach`] for those who may block and must not wait for a place among those who do.
    ///
    /// # Errors
    /// Those of [`Self::detach`].
    pub fn detach_blocking(&self, id: &str) -> Result<(), NetworkError> {
        self.0.detach(id)
    }

    /// Puts back the bridge's settings and the rules that others took away, and adds the rule that a dockerd started
    /// meanwhile makes necessary. What is as it should be is not touched. Does nothing without containers.
    ///
    /// # Errors
    /// What Linux or `nft` refused.
    pub async fn ensure(&self) -> Result<(), NetworkError> {
        let network = self.clone();
        blocking(move || network.0.ensure()).await
    }

    /// Takes every connection away, and the bridge and the table even when no record tells of them.
    ///
    /// # Errors
    /// Everything that went wrong; every step is tried nevertheless.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        let network = self.clone();
        blocking(move || network.0.teardown()).await
    }

    /// Every connection, by container.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn attachments(&self) -> Result<Vec<(String, Attachment)>, NetworkError> {
        let network = self.clone();
        blocking(move || {
            let all = network.0.store.lock()?.all()?.into_iter();
            Ok(all.map(|(id, record)| (id, record.attachment)).collect())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("network work does not panic and is not aborted")
}

/// Has the rules of port forwarding checked by Linux, by this `nft`, without applying them.
///
/// # Errors
/// [`NetworkError::Firewall`].
pub fn try_rules(nft: &str) -> Result<(), NetworkError> {
    let subnet = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 29);
    let there = || {
        // Where root of a user namespace would have them.
        if userns::inside() {
            netns::enter_new().map_err(NetworkError::host("make a network namespace"))?;
        }
        firewall::try_out(nft, subnet)
    };
    thread::scope(|scope| scope.spawn(there).join().expect("nft does not panic"))
}

/// The program by which an ordinary user's containers reach the outside.
///
/// # Errors
/// [`NetworkError::WayOut`] when there is none, or it could not work.
pub fn way_out() -> Result<&'static str, NetworkError> {
    outer::look()
}

/// Makes a bridge and a veth pair in a network namespace of their own, which ends with them.
///
/// # Errors
/// What Linux refused.
pub fn try_links() -> Result<(), NetworkError> {
    links::try_out()
}

/// Whether rules of another program, as far as `nft` sees them, drop forwarded packets.
///
/// # Errors
/// [`NetworkError::Firewall`].
pub fn forward_is_dropped() -> Result<bool, NetworkError> {
    firewall::forward_is_dropped()
}

impl Shared {
    /// [`Self::attach_here`] where the bridge is, and from the host to there.
    fn attach(&self, id: &str, ports: Vec<(u16, u16)>) -> Result<Attachment, NetworkError> {
        let attached = self.store.at_bridge(|| self.attach_here(id, ports))?;
        if let Err(error) = self.listen(id, &attached, true) {
            if let Err(undo) = self.detach(id) {
                tracing::warn!("undoing the connection of {id}: {undo}");
            }
            return Err(error);
        }
        Ok(attached)
    }

    /// The listener goes last: until the record is leaving, [`Self::ensure`] may start it again.
    fn detach(&self, id: &str) -> Result<(), NetworkError> {
        let all = self.store.lock()?.all()?;
        let known = all.iter().any(|(known, _)| known == id);
        let detached = match known {
            true => self.store.at_bridge(|| self.detach_here(id)),
            false => Ok(()),
        };
        let stopped = outer::stop_listening(&self.store.listener(id));
        several(
            [detached, stopped]
                .into_iter()
                .filter_map(Result::err)
                .collect(),
        )
    }

    fn ensure(&self) -> Result<(), NetworkError> {
        let mut all = self.store.lock()?.all()?;
        all.retain(|(_, record)| !record.leaving);
        if all.is_empty() {
            return Ok(());
        }
        self.store.at_bridge(|| self.ensure_here())?;
        let ends = all
            .iter()
            .map(|(id, record)| self.listen(id, &record.attachment, false));
        several(ends.filter_map(Result::err).collect())
    }

    fn teardown(&self) -> Result<(), NetworkError> {
        let all = self.store.lock()?.all()?;
        let ends = all
            .iter()
            .map(|(id, _)| outer::stop_listening(&self.store.listener(id)));
        let mut errors: Vec<_> = ends.filter_map(Result::err).collect();
        errors.extend(self.store.at_bridge(|| self.teardown_here()).err());
        several(errors)
    }

    /// Has a program listen on a container's host ports where rules on the host cannot, unless one does or the container
    /// is leaving. Whoever is at that already is waited for, or left to it.
    fn listen(&self, id: &str, wanted: &Attachment, waits: bool) -> Result<(), NetworkError> {
        let Some(outer) = self
            .store
            .outer
            .as_ref()
            .filter(|_| !wanted.ports.is_empty())
        else {
            return Ok(());
        };
        let Some(_alone) = self.store.lock_listener(id, waits)? else {
            return Ok(());
        };
        let file = self.store.listener(id);
        let records = self.store.lock()?;
        let all = records.all()?;
        let mut staying = all.iter().filter(|(_, record)| !record.leaving);
        let Some((_, record)) = staying.find(|(known, _)| known == id) else {
            return outer::stop_listening(&file);
        };
        let begun = outer.begin(id, &file, &record.attachment)?;
        // It is in its file: when the container leaves now, it is ended, and others need not wait for it.
        drop(records);
        begun.map_or(Ok(()), |listener| listener.until_ready(id, &file))
    }
}

fn several(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(NetworkError::Several(errors)),
    }
}
