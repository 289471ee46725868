//! Bridge, network namespaces and port forwarding for engines without a network of their own (containerd, youki).
//!
//! Each container gets a network namespace bound to `<run-dir>/netns/<id>`, a veth pair whose host end is a port of the
//! agent's bridge, and an address. Forwarding is one nftables table of our own that is always written whole, in one
//! transaction, from the records in `<run-dir>/network/`: rules that somebody flushed come back with the next change or
//! with [`Network::ensure`], and several agents' processes may share a run directory. With the last container the
//! table, the bridge and everything else go away.

mod firewall;
mod links;
mod store;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::PortBinding;
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the bridge and of the nftables table; by default derived from the run directory.
    pub name: Option<String>,
    /// Addresses of the bridge (its first) and of the containers; by default the first candidate that nothing on this
    /// host uses.
    pub subnet: Option<Ipv4Net>,
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
pub struct Network(Arc<Store>);

impl Network {
    /// Reads nothing and changes nothing yet.
    ///
    /// # Errors
    /// When the folder for the records cannot be made.
    pub fn open(run_dir: &Path, config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self(Arc::new(Store::open(run_dir, config)?)))
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
        let (id, ports) = (
            id.to_owned(),
            ports.iter().map(|p| (p.host, p.container)).collect(),
        );
        self.blocking(move |store| attach(store, &id, ports)).await
    }

    /// Takes a container's connection away, and the bridge and the table with the last one. Absent is done.
    ///
    /// # Errors
    /// Everything that went wrong; every step is tried nevertheless.
    pub async fn detach(&self, id: &str) -> Result<(), NetworkError> {
        let id = id.to_owned();
        self.blocking(move |store| detach(store, &id)).await
    }

    /// Puts back the bridge's settings and the rules that others took away, and adds the rule that a dockerd started
    /// meanwhile makes necessary. What is as it should be is not touched. Does nothing without containers.
    ///
    /// # Errors
    /// What Linux or `nft` refused.
    pub async fn ensure(&self) -> Result<(), NetworkError> {
        self.blocking(|store| {
            let lock = store.lock()?;
            let all = lock.all()?;
            if all.is_empty() {
                return Ok(());
            }
            let subnet = store.subnet()?;
            links::with_host(async |host| links::ensure_bridge(host, &store.name, subnet).await)?;
            if !firewall::intact(&store.name, &all)? {
                firewall::write(&store.name, subnet, &all)?;
            }
            firewall::open_forward(&store.name)
        })
        .await
    }

    /// Takes every connection away, and the bridge and the table even when no record tells of them.
    ///
    /// # Errors
    /// Everything that went wrong; every step is tried nevertheless.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        self.blocking(|store| {
            let lock = store.lock()?;
            let mut errors = Vec::new();
            for (id, _) in lock.all()? {
                errors.extend(take_away(store, &lock, &id).err());
            }
            errors.extend(firewall::remove(&store.name).err());
            errors.extend(links::remove_bridge(&store.name).err());
            several(errors)
        })
        .await
    }

    /// Every connection, by container.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn attachments(&self) -> Result<Vec<(String, Attachment)>, NetworkError> {
        self.blocking(|store| store.lock()?.all()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let store = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .expect("network work does not panic and is not aborted")
    }
}

/// Has the rules of port forwarding checked by Linux, by this `nft`, without applying them.
///
/// # Errors
/// [`NetworkError::Firewall`].
pub fn try_rules(nft: &str) -> Result<(), NetworkError> {
    let subnet = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 29);
    firewall::try_out(nft, subnet)
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

fn attach(store: &Store, id: &str, ports: Vec<(u16, u16)>) -> Result<Attachment, NetworkError> {
    if id.is_empty() || id.starts_with('.') || id.contains('/') {
        return Err(NetworkError::InvalidId(id.to_owned()));
    }
    let lock = store.lock()?;
    let mut all = lock.all()?;
    if all.iter().any(|(known, _)| known == id) {
        return Err(NetworkError::Connected(id.to_owned()));
    }
    if let Some((port, holder)) = taken(&all, &ports).or_else(|| repeated(id, &ports)) {
        return Err(NetworkError::PortTaken { port, holder });
    }
    // Whoever chooses a subnet must see the bridges of all others.
    let _alone = all.is_empty().then(store::lock_host).transpose()?;
    let subnet = store.subnet()?;
    let address = free_address(subnet, &all)?;
    let attachment = Attachment {
        netns: store.netns(id),
        interface: links::interface(&store.name, id),
        address,
        prefix: subnet.prefix_len(),
        gateway: gateway(subnet),
        ports,
    };
    // The record comes first: whoever finds it can undo what follows.
    lock.write(id, &attachment)?;
    all.push((id.to_owned(), attachment.clone()));
    if let Err(error) = connect(store, subnet, &attachment, &all) {
        if let Err(undo) = take_away(store, &lock, id) {
            tracing::warn!("undoing the connection of {id}: {undo}");
        }
        return Err(error);
    }
    Ok(attachment)
}

fn connect(
    store: &Store,
    subnet: Ipv4Net,
    attachment: &Attachment,
    all: &[(String, Attachment)],
) -> Result<(), NetworkError> {
    // The rules name interfaces that need not be there yet.
    both(
        || firewall::write(&store.name, subnet, all),
        || links::connect(&store.name, subnet, attachment),
    )?;
    // The rule in the other table stays for as long as there are containers; `ensure` looks after it.
    if all.len() == 1 {
        firewall::open_forward(&store.name)
    } else {
        Ok(())
    }
}

fn detach(store: &Store, id: &str) -> Result<(), NetworkError> {
    let lock = store.lock()?;
    if lock.all()?.iter().all(|(known, _)| known != id) {
        return Ok(());
    }
    take_away(store, &lock, id)
}

/// Every step is tried; what failed is collected.
fn take_away(store: &Store, lock: &store::Locked<'_>, id: &str) -> Result<(), NetworkError> {
    let mut all = lock.all()?;
    all.retain(|(known, _)| known != id);
    let interface = links::interface(&store.name, id);
    let rules = || match all.is_empty() {
        true => firewall::remove(&store.name),
        false => store
            .subnet()
            .and_then(|subnet| firewall::write(&store.name, subnet, &all)),
    };
    // Linux takes its time to remove a link: as long as `nft` takes.
    let links = || {
        let mut errors = links::disconnect(&interface, &store.netns(id));
        if all.is_empty() {
            errors.extend(links::remove_bridge(&store.name).err());
        }
        several(errors)
    };
    let mut errors: Vec<NetworkError> = both(rules, links).err().into_iter().collect();
    if errors.is_empty() {
        errors.extend(lock.remove(id).err());
        if all.is_empty() {
            errors.extend(lock.forget_subnet().err());
        }
    }
    several(errors)
}

fn several(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(NetworkError::Several(errors)),
    }
}

/// A host port that one container asks for twice.
fn repeated(id: &str, ports: &[(u16, u16)]) -> Option<(u16, String)> {
    let mut seen = std::collections::BTreeSet::new();
    let twice = ports.iter().find(|(host, _)| !seen.insert(*host))?;
    Some((twice.0, id.to_owned()))
}

/// Does two things at once, both to their end, and tells what went wrong in either.
fn both(
    here: impl FnOnce() -> Result<(), NetworkError> + Send,
    there: impl FnOnce() -> Result<(), NetworkError>,
) -> Result<(), NetworkError> {
    thread::scope(|scope| {
        let here = scope.spawn(here);
        let there = there().err();
        let here = here.join().expect("network work does not panic").err();
        several([here, there].into_iter().flatten().collect())
    })
}

fn taken(all: &[(String, Attachment)], ports: &[(u16, u16)]) -> Option<(u16, String)> {
    all.iter().find_map(|(id, attachment)| {
        let clash = attachment
            .ports
            .iter()
            .find(|(host, _)| ports.iter().any(|(wanted, _)| wanted == host))?;
        Some((clash.0, id.clone()))
    })
}

/// The first address is the bridge's.
fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.addr())
}

fn free_address(subnet: Ipv4Net, all: &[(String, Attachment)]) -> Result<Ipv4Addr, NetworkError> {
    subnet
        .hosts()
        .skip(1)
        .find(|address| {
            all.iter()
                .all(|(_, attachment)| attachment.address != *address)
        })
        .ok_or(NetworkError::AddressesExhausted(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(address: &str, host: u16) -> (String, Attachment) {
        let attachment = Attachment {
            netns: "/n".into(),
            interface: "v".into(),
            address: address.parse().expect("an address"),
            prefix: 29,
            gateway: "10.0.0.1".parse().expect("an address"),
            ports: vec![(host, 2000)],
        };
        (format!("c{host}"), attachment)
    }

    #[test]
    fn addresses_are_dealt_lowest_first_and_used_again() {
        let subnet: Ipv4Net = "10.0.0.0/29".parse().expect("a subnet");
        assert_eq!(gateway(subnet), Ipv4Addr::new(10, 0, 0, 1));
        let mut all: Vec<_> = (2..=6)
            .map(|n| attachment(&format!("10.0.0.{n}"), 100 + n))
            .collect();
        assert!(matches!(
            free_address(subnet, &all),
            Err(NetworkError::AddressesExhausted(_))
        ));
        all.remove(1);
        assert_eq!(
            free_address(subnet, &all).expect("one is free"),
            Ipv4Addr::new(10, 0, 0, 3)
        );
    }

    #[test]
    fn a_host_port_is_given_once() {
        let all = [attachment("10.0.0.2", 30000)];
        assert_eq!(
            taken(&all, &[(30001, 1), (30000, 1)]),
            Some((30000, "c30000".into()))
        );
        assert_eq!(taken(&all, &[(30001, 2000)]), None);
        assert_eq!(repeated("c", &[(30001, 1), (30002, 1)]), None);
        assert_eq!(
            repeated("c", &[(30001, 1), (30001, 2)]),
            Some((30001, "c".into()))
        );
    }
}
