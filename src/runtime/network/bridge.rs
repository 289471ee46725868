//! Where the bridge is, which is the host or an ordinary user's own network namespace: containers come and go there, side
//! by side but for the choice of address and ports.

use std::fs::File;
use std::net::Ipv4Addr;
use std::thread;

use ipnet::Ipv4Net;

use super::store::{self, Locked, Record};
use super::{Attachment, NetworkError, Shared, firewall, links, several};

impl Shared {
    /// Gives a container an address, and connects it.
    pub(super) fn attach_here(
        &self,
        id: &str,
        ports: Vec<(u16, u16)>,
    ) -> Result<Attachment, NetworkError> {
        if id.is_empty() || id.starts_with('.') || id.contains('/') {
            return Err(NetworkError::InvalidId(id.to_owned()));
        }
        let bridge = self.store.keep_bridge()?;
        let (subnet, attachment, alone) = self.reserve(id, ports)?;
        // The rules name interfaces that need not be there yet.
        let connected = both(
            || self.rules.follow(&self.store),
            || links::connect(&self.store.name, subnet, &attachment),
        );
        drop((alone, bridge));
        if let Err(error) = connected {
            if let Err(undo) = self.detach_here(id) {
                tracing::warn!("undoing the connection of {id}: {undo}");
            }
            return Err(error);
        }
        Ok(attachment)
    }

    /// Writes the record of a new connection, with an address of its own. The first one's host is locked until there is
    /// a bridge.
    fn reserve(
        &self,
        id: &str,
        ports: Vec<(u16, u16)>,
    ) -> Result<(Ipv4Net, Attachment, Option<File>), NetworkError> {
        let store = &self.store;
        let records = store.lock()?;
        let all = records.all()?;
        if all.iter().any(|(known, _)| known == id) {
            return Err(NetworkError::Connected(id.to_owned()));
        }
        if let Some((port, holder)) = taken(&all, &ports).or_else(|| repeated(id, &ports)) {
            return Err(NetworkError::PortTaken { port, holder });
        }
        // Whoever chooses a subnet must see the bridges of all others, and they must see ours.
        let first = all.is_empty();
        let alone = first.then(store::lock_host).transpose()?;
        let subnet = store.subnet()?;
        let attachment = Attachment {
            netns: store.netns(id),
            interface: links::interface(&store.name, id),
            address: free_address(subnet, &all)?,
            prefix: subnet.prefix_len(),
            gateway: gateway(subnet),
            ports,
        };
        let record = Record {
            attachment,
            leaving: false,
        };
        // The record comes first: whoever finds it can undo what follows.
        records.write(id, &record)?;
        if first {
            self.rules.look_again();
        }
        Ok((subnet, record.attachment, alone))
    }

    /// Every step is tried; what failed is collected, and the record stays for the next time.
    pub(super) fn detach_here(&self, id: &str) -> Result<(), NetworkError> {
        let store = &self.store;
        let records = store.lock()?;
        let all = records.all()?;
        let Some((_, mut record)) = all.into_iter().find(|(known, _)| known == id) else {
            return Ok(());
        };
        record.leaving = true;
        records.write(id, &record)?;
        drop(records);
        let Attachment {
            interface, netns, ..
        } = &record.attachment;
        both(
            || self.rules.follow(store),
            || several(links::disconnect(interface, netns)),
        )?;
        self.finish(id)
    }

    /// Removes the record, and with the last one the bridge.
    fn finish(&self, id: &str) -> Result<(), NetworkError> {
        let store = &self.store;
        let is_last = |records: &Locked<'_>| {
            let all = records.all();
            all.map(|all| all.iter().all(|(other, _)| other == id))
        };
        let records = store.lock()?;
        if !is_last(&records)? {
            return records.remove(id);
        }
        drop(records);
        // Nobody who is connecting a container may lose the bridge.
        let _bridge = store.take_bridge()?;
        let records = store.lock()?;
        if is_last(&records)? {
            links::remove_bridge(&store.name)?;
            records.forget_subnet()?;
        }
        records.remove(id)
    }

    pub(super) fn ensure_here(&self) -> Result<(), NetworkError> {
        let store = &self.store;
        let _bridge = store.keep_bridge()?;
        let records = store.lock()?;
        if records.all()?.iter().all(|(_, record)| record.leaving) {
            return Ok(());
        }
        let subnet = store.subnet()?;
        drop(records);
        links::with_host(async |host| links::ensure_bridge(host, &store.name, subnet).await)?;
        self.rules.look_again();
        self.rules.follow(store)
    }

    pub(super) fn teardown_here(&self) -> Result<(), NetworkError> {
        let store = &self.store;
        let all = store.lock()?.all()?;
        let errors = all.iter().filter_map(|(id, _)| self.detach_here(id).err());
        let mut errors: Vec<_> = errors.collect();
        let _bridge = store.take_bridge()?;
        if store
            .lock()?
            .all()?
            .iter()
            .all(|(_, record)| record.leaving)
        {
            errors.extend(firewall::remove(&store.name).err());
            errors.extend(links::remove_bridge(&store.name).err());
        }
        several(errors)
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

fn taken(all: &[(String, Record)], ports: &[(u16, u16)]) -> Option<(u16, String)> {
    all.iter().find_map(|(id, record)| {
        let clash = record
            .attachment
            .ports
            .iter()
            .find(|(host, _)| ports.iter().any(|(wanted, _)| wanted == host))?;
        Some((clash.0, id.clone()))
    })
}

/// The first address is the bridge's.
pub(super) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.addr())
}

fn free_address(subnet: Ipv4Net, all: &[(String, Record)]) -> Result<Ipv4Addr, NetworkError> {
    subnet
        .hosts()
        .skip(1)
        .find(|address| {
            all.iter()
                .all(|(_, record)| record.attachment.address != *address)
        })
        .ok_or(NetworkError::AddressesExhausted(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str, host: u16) -> (String, Record) {
        let attachment = Attachment {
            netns: "/n".into(),
            interface: "v".into(),
            address: address.parse().expect("an address"),
            prefix: 29,
            gateway: "10.0.0.1".parse().expect("an address"),
            ports: vec![(host, 2000)],
        };
        let record = Record {
            attachment,
            leaving: false,
        };
        (format!("c{host}"), record)
    }

    #[test]
    fn addresses_are_dealt_lowest_first_and_used_again() {
        let subnet: Ipv4Net = "10.0.0.0/29".parse().expect("a subnet");
        assert_eq!(gateway(subnet), Ipv4Addr::new(10, 0, 0, 1));
        let mut all: Vec<_> = (2..=6)
            .map(|n| record(&format!("10.0.0.{n}"), 100 + n))
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
        let all = [record("10.0.0.2", 30000)];
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
