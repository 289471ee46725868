//! Links, addresses and routes by netlink, on a thread of its own: a thread that has been in another network namespace
//! must never go back to a pool.

use std::fs::{self, File};
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest, Sha256};

use super::bridge::gateway;
use super::{Attachment, NetworkError};
use crate::sys::netns;

/// The container's own name of its link.
const INSIDE: &str = "eth0";

/// Name of the host end of a container's veth pair: at most 15 bytes, and its own for each bridge and container.
pub(super) fn interface(bridge: &str, id: &str) -> String {
    let digest = hex::encode(Sha256::digest(format!("{bridge}/{id}")));
    format!("bv{}", &digest[..12])
}

/// Runs netlink requests in the namespace of this process.
pub(super) fn with_host<T: Send>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_thread(|| {
        block_on(async {
            let (host, _task) = connection()?;
            work(&host).await
        })
    })
}

/// Makes the bridge where it is missing, and the namespace, the link, the address and the default route.
pub(super) fn connect(
    bridge: &str,
    subnet: Ipv4Net,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    on_thread(|| {
        block_on(async {
            let (host, _host_task) = connection()?;
            let bridge = ensure_bridge(&host, bridge, subnet).await?;
            // From here on this thread is in the new namespace; the first connection stays in the old one.
            let namespace = netns::create(&attachment.netns).map_err(NetworkError::host(
                format!("make network namespace {}", attachment.netns.display()),
            ))?;
            let (inside, _inside_task) = connection()?;
            add_veth(&host, bridge, &namespace, attachment).await?;
            configure_inside(&inside, attachment).await
        })
    })
}

/// Makes a bridge and a pair at it in a new namespace, which ends with the thread.
pub(super) fn try_out() -> Result<(), NetworkError> {
    on_thread(|| {
        block_on(async {
            netns::enter_new().map_err(NetworkError::host("make a network namespace"))?;
            let (host, _task) = connection()?;
            let bridge = LinkBridge::new("bridge").build();
            let made = host.link().add(bridge).execute().await;
            made.map_err(NetworkError::netlink("make a bridge"))?;
            let index = index(&host, "bridge").await?;
            let index = index.ok_or_else(|| missing("bridge"))?;
            let pair = LinkVeth::new("one", "other").controller(index).build();
            let made = host.link().add(pair).execute().await;
            made.map_err(NetworkError::netlink("make a veth pair"))
        })
    })
}

/// Removes a link and a namespace; what is not there is no error. Every step is tried.
pub(super) fn disconnect(interface: &str, namespace: &Path) -> Vec<NetworkError> {
    let link = with_host(async |host| remove_link(host, interface).await);
    let namespace = netns::remove(namespace).map_err(NetworkError::host(format!(
        "remove network namespace {}",
        namespace.display()
    )));
    [link.err(), namespace.err()]
        .into_iter()
        .flatten()
        .collect()
}

/// Removes the bridge; absent is done.
pub(super) fn remove_bridge(name: &str) -> Result<(), NetworkError> {
    with_host(async |host| remove_link(host, name).await)
}

/// Destinations of this host's IPv4 routes, the default route excepted, and its own subnets.
pub(super) async fn routes(host: &Handle) -> Result<Vec<Ipv4Net>, NetworkError> {
    let list = NetworkError::netlink("list routes");
    let messages: Vec<_> = host
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect()
        .await
        .map_err(list)?;
    let destination = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    };
    let nets = messages.iter().filter_map(|message| {
        let address = message.attributes.iter().find_map(destination)?;
        Ipv4Net::new(address, message.header.destination_prefix_length).ok()
    });
    Ok(nets.filter(|net| net.prefix_len() > 0).collect())
}

/// Makes the bridge where it is missing, with its address, up, and with forwarding to and from loopback addresses.
pub(super) async fn ensure_bridge(
    host: &Handle,
    name: &str,
    subnet: Ipv4Net,
) -> Result<u32, NetworkError> {
    let index = match index(host, name).await? {
        Some(index) => index,
        None => {
            let make = host
                .link()
                .add(
                    LinkBridge::new(name)
                        .address(hardware_address(gateway(subnet)))
                        .up()
                        .build(),
                )
                .execute()
                .await;
            make.or_else(made_meanwhile)
                .map_err(NetworkError::netlink(format!("make bridge {name}")))?;
            index(host, name).await?.ok_or_else(|| missing(name))?
        }
    };
    let address = gateway(subnet);
    if !has_address(host, index, address).await? {
        let add = host
            .address()
            .add(index, address.into(), subnet.prefix_len())
            .execute()
            .await;
        add.or_else(made_meanwhile)
            .map_err(NetworkError::netlink(format!(
                "add {address} to bridge {name}"
            )))?;
    }
    sysctl("net/ipv4/ip_forward", "1")?;
    // Packets to 127.0.0.1 that are forwarded to a container keep that source until they leave through the bridge.
    sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
    Ok(index)
}

/// A hardware address that goes with the address: neighbours' tables stay right when an address is used again, and the
/// bridge does not take over that of whichever container came last.
fn hardware_address(address: Ipv4Addr) -> Vec<u8> {
    // Locally administered, unicast.
    let mut all = vec![0x02, 0xba];
    all.extend(address.octets());
    all
}

async fn add_veth(
    host: &Handle,
    bridge: u32,
    namespace: &File,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    let name = &attachment.interface;
    let peer = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE)
        .address(hardware_address(attachment.address))
        .setns_by_fd(namespace.as_raw_fd());
    let pair = LinkVeth::new(name, INSIDE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
        .controller(bridge)
        .up()
        .build();
    host.link()
        .add(pair)
        .execute()
        .await
        .map_err(NetworkError::netlink(format!("make veth pair {name}")))
}

async fn configure_inside(inside: &Handle, attachment: &Attachment) -> Result<(), NetworkError> {
    for link in ["lo", INSIDE] {
        let index = index(inside, link).await?.ok_or_else(|| missing(link))?;
        if link == INSIDE {
            let add = inside
                .address()
                .add(index, attachment.address.into(), attachment.prefix)
                .execute()
                .await;
            add.map_err(NetworkError::netlink(format!(
                "add {} to {INSIDE}",
                attachment.address
            )))?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        inside
            .link()
            .set(up)
            .execute()
            .await
            .map_err(NetworkError::netlink(format!("set {link} up")))?;
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(attachment.gateway)
        .build();
    let add = inside.route().add(route).execute().await;
    add.map_err(NetworkError::netlink(format!(
        "add the default route by {}",
        attachment.gateway
    )))
}

async fn remove_link(host: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(index) = index(host, name).await? else {
        return Ok(());
    };
    match host.link().del(index).execute().await {
        Err(error) if is_missing(&error) => Ok(()),
        other => other.map_err(NetworkError::netlink(format!("remove link {name}"))),
    }
}

async fn index(host: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    match host
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
    {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(NetworkError::netlink(format!("look for link {name}"))(
            error,
        )),
    }
}

async fn has_address(host: &Handle, index: u32, address: Ipv4Addr) -> Result<bool, NetworkError> {
    let list = NetworkError::netlink("list addresses");
    let all: Vec<_> = host
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .map_err(list)?;
    let wanted = AddressAttribute::Address(address.into());
    Ok(all
        .iter()
        .any(|message| message.header.index == index && message.attributes.contains(&wanted)))
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    is_one_of(error, &[libc::ENODEV, libc::ENOENT])
}

/// Containers that come at once all make the bridge.
fn made_meanwhile(error: rtnetlink::Error) -> Result<(), rtnetlink::Error> {
    match is_one_of(&error, &[libc::EEXIST]) {
        true => Ok(()),
        false => Err(error),
    }
}

fn is_one_of(error: &rtnetlink::Error, codes: &[i32]) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if codes.contains(&-message.raw_code()))
}

fn missing(name: &str) -> NetworkError {
    NetworkError::host(format!("find link {name}"))(std::io::ErrorKind::NotFound.into())
}

/// Writes a setting unless it is so already: some hosts have /proc/sys read-only with the right settings.
fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(NetworkError::host(format!(
        "write {value} to {}",
        path.display()
    )))
}

/// A netlink connection in the calling thread's namespace; it ends with the second value.
fn connection() -> Result<(Handle, tokio::task::JoinSet<()>), NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(NetworkError::host("open a netlink socket"))?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    Ok((handle, tasks))
}

fn block_on<T>(work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    runtime
        .map_err(NetworkError::host("start a thread's runtime"))?
        .block_on(work)
}

fn on_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        scope
            .spawn(work)
            .join()
            .expect("netlink work does not panic")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_fit_and_differ() {
        let (a, b) = (interface("bai0", "one"), interface("bai1", "one"));
        assert!(a.len() <= 15);
        assert_ne!(a, b);
    }
}
