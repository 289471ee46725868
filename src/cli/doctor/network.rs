//! The network of kernels: the bridge, the packet filter, host ports, name servers.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, access};

use super::{Finding, Needs};
use crate::resource::port;
use crate::rootless;
use crate::runtime::network::{self, NetworkError};
use crate::runtime::{chain, names};

/// The program of the packet filter.
const NFT: &str = "nft";
/// What a kernel needs at least: one for each of its runner's sockets, and some for its services.
const PORTS_OF_A_KERNEL: usize = 4;
/// How many ports are named.
const NAMED: usize = 5;

/// Every check of this group. `theirs` are the ports of kernels that run.
pub(super) fn all(
    proc: &Path,
    ports: &RangeInclusive<u16>,
    theirs: &BTreeSet<u16>,
    needs: Needs,
) -> Vec<Finding> {
    let taken: Vec<u16> = ports
        .clone()
        .filter(|port| !theirs.contains(port) && !port::is_free(*port))
        .collect();
    let resolv: Vec<String> = names::SOURCES
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let rootless = rootless::current().is_some();
    let mut all = vec![
        nft(Command::new(NFT).arg("--version").output()).needed(needs.network),
        rules(network::try_rules(NFT)).needed(needs.network),
        links(network::try_links()).needed(needs.network),
        // An ordinary user's packets are forwarded in a network namespace of its own.
        forwarding(proc).needed(needs.network && !rootless),
        foreign_filter(network::forward_is_dropped().unwrap_or(false), proc)
            .needed(needs.network && !rootless),
        pool(ports, &taken),
        outgoing(proc, ports),
        name_servers(&resolv),
    ];
    if rootless {
        all.push(way_out(network::way_out()).needed(needs.network));
    }
    all
}

/// An ordinary user's containers need a program to reach the outside.
fn way_out(found: Result<&str, NetworkError>) -> Finding {
    let check = "way-out";
    match found {
        Ok(program) => Finding::ok(check, format!("kernels reach the outside by {program}")),
        Err(error) => Finding::warning(
            check,
            error.to_string(),
            "apt install passt, and make /dev/net/tun usable for everybody",
        ),
    }
}

fn nft(asked: io::Result<std::process::Output>) -> Finding {
    let check = "nft";
    match asked {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::ok(check, text.trim())
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Finding::failed(
                check,
                format!("nft: {}", text.trim()),
                "apt install nftables",
            )
        }
        Err(error) => Finding::failed(check, format!("nft: {error}"), "apt install nftables"),
    }
}

fn rules(tried: Result<(), NetworkError>) -> Finding {
    let check = "nft-rules";
    match tried {
        Ok(()) => Finding::ok(
            check,
            "the rules of port forwarding are accepted (tried, not applied)",
        ),
        Err(error) => Finding::failed(
            check,
            error.to_string(),
            "run as root; load the modules (modprobe -a nf_tables nft_chain_nat nft_masq nft_fib_ipv4 nf_nat)",
        ),
    }
}

fn links(tried: Result<(), NetworkError>) -> Finding {
    let check = "bridge";
    match tried {
        Ok(()) => Finding::ok(
            check,
            "a bridge and a veth pair can be made (tried in a namespace of their own)",
        ),
        Err(error) => Finding::failed(
            check,
            chain(&error),
            "run as root; load the modules (modprobe -a bridge veth)",
        ),
    }
}

fn forwarding(proc: &Path) -> Finding {
    let check = "ip-forward";
    let file = proc.join("sys/net/ipv4/ip_forward");
    let on = fs::read_to_string(&file).is_ok_and(|text| text.trim() == "1");
    if on {
        return Finding::ok(check, "packets are forwarded");
    }
    if access(&file, Access::WRITE_OK).is_ok() {
        return Finding::ok(check, "off now; the first kernel switches it on");
    }
    Finding::failed(
        check,
        "packets are not forwarded, and this process cannot change it",
        "sysctl -w net.ipv4.ip_forward=1",
    )
}

/// Other programs' rules that drop what is forwarded. `dropped` tells of those that nft sees.
fn foreign_filter(dropped: bool, proc: &Path) -> Finding {
    let check = "foreign-filter";
    if dropped {
        return Finding::info(
            check,
            "another program's rules (dockerd's?) drop forwarded packets; the agent adds a rule of its own to them",
        );
    }
    let old = fs::read_to_string(proc.join("net/ip_tables_names")).unwrap_or_default();
    if old.lines().any(|table| table == "filter") {
        return Finding::warning(
            check,
            "rules of iptables-legacy are in use, which nft does not see; they may drop kernels' packets",
            "iptables-legacy -L FORWARD shows them; use iptables-nft (update-alternatives --config iptables), or accept forwarded packets there",
        );
    }
    Finding::ok(check, "nobody else drops forwarded packets")
}

fn pool(ports: &RangeInclusive<u16>, taken: &[u16]) -> Finding {
    let check = "host-ports";
    let range = format!("{}-{}", ports.start(), ports.end());
    let free = ports.len() - taken.len();
    if taken.is_empty() {
        return Finding::ok(check, format!("{range}, none in use by others"));
    }
    let named: Vec<String> = taken.iter().take(NAMED).map(u16::to_string).collect();
    let more = if taken.len() > NAMED { " …" } else { "" };
    let detail = format!(
        "{range}: {} in use by others ({}{more})",
        taken.len(),
        named.join(", ")
    );
    let remedy = "choose a range of their own for kernels with --container-port-range; `ss -ltnp` shows who has them";
    if free < PORTS_OF_A_KERNEL {
        Finding::failed(check, detail, remedy)
    } else {
        Finding::warning(check, detail, remedy)
    }
}

/// Ports that Linux gives to outgoing connections may be taken when a kernel wants them.
fn outgoing(proc: &Path, ports: &RangeInclusive<u16>) -> Finding {
    let check = "outgoing-ports";
    let read = |name: &str| fs::read_to_string(proc.join("sys/net/ipv4").join(name));
    let text = read("ip_local_port_range").unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (words.next(), words.next()) else {
        return Finding::ok(check, "not known");
    };
    let reserved = read("ip_local_reserved_ports").unwrap_or_default();
    let reserved: Vec<(u16, u16)> = reserved.trim().split(',').filter_map(span).collect();
    let clash = ports.clone().any(|port| {
        let is_reserved = reserved
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&port));
        (low..=high).contains(&port) && !is_reserved
    });
    if !clash {
        return Finding::ok(check, format!("{low}-{high}, apart from those of kernels"));
    }
    let range = format!("{}-{}", ports.start(), ports.end());
    Finding::warning(
        check,
        format!("outgoing connections use {low}-{high} too, among them ports of kernels ({range})"),
        format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={range}, or another --container-port-range"
        ),
    )
}

fn span(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Some((low.parse().ok()?, high.parse().ok()?))
}

/// Kernels cannot reach name servers on the host's loopback interface.
fn name_servers(texts: &[String]) -> Finding {
    let check = "name-servers";
    let kept = texts.iter().find_map(|text| names::reachable(text));
    match kept {
        Some(_) => Finding::ok(check, "kernels can reach a name server"),
        None => Finding::warning(
            check,
            "no name server but on loopback: kernels cannot resolve names",
            "put a name server of the network into /etc/resolv.conf, or use systemd-resolved, whose own list is read",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{ExitStatus, Output};

    use super::super::Status;
    use super::*;

    fn world(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    #[test]
    fn a_missing_nft_fails_with_the_package() {
        let found = nft(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("nftables"));
        let broken = Output {
            status: ExitStatus::from_raw(256),
            stdout: Vec::new(),
            stderr: b"no library\n".to_vec(),
        };
        assert!(nft(Ok(broken)).detail.contains("no library"));
    }

    #[test]
    fn rules_and_links_that_are_refused_fail_with_the_modules() {
        let refused = || Err(NetworkError::Firewall("not permitted".to_owned()));
        let found = rules(refused());
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("not permitted") && remedy(&found).contains("modprobe"));
        let found = links(refused());
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("bridge"));
        let found = rules(network::try_rules("/no/such/nft"));
        assert_eq!(found.status, Status::Failed);
    }

    #[test]
    fn forwarding_that_cannot_be_switched_on_fails_with_the_setting() {
        let file = "sys/net/ipv4/ip_forward";
        assert_eq!(
            forwarding(world(&[(file, "1\n")]).path()).status,
            Status::Ok
        );
        assert_eq!(
            forwarding(world(&[(file, "0\n")]).path()).status,
            Status::Ok
        );
        let found = forwarding(world(&[]).path());
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("net.ipv4.ip_forward=1"));
    }

    #[test]
    fn filters_of_others_are_told_and_old_ones_are_a_warning() {
        let file = "net/ip_tables_names";
        let none = world(&[]);
        assert_eq!(foreign_filter(false, none.path()).status, Status::Ok);
        assert_eq!(foreign_filter(true, none.path()).status, Status::Info);
        let found = foreign_filter(false, world(&[(file, "nat\nfilter\n")]).path());
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("iptables-nft"));
    }

    #[test]
    fn ports_in_use_are_named_and_too_few_free_ones_fail() {
        assert_eq!(pool(&(1..=10), &[]).status, Status::Ok);
        let found = pool(&(1..=10), &[3, 4]);
        assert_eq!(found.status, Status::Warning);
        assert!(found.detail.contains("3, 4") && remedy(&found).contains("--container-port-range"));
        let found = pool(&(1..=10), &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("7 in use"));
    }

    #[test]
    fn outgoing_connections_are_kept_off_the_ports_of_kernels() {
        let range = ("sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        let reserved = |text| ("sys/net/ipv4/ip_local_reserved_ports", text);
        let status = |files: &[(&str, &str)], ports| outgoing(world(files).path(), &ports).status;
        assert_eq!(status(&[range], 30000..=31000), Status::Ok);
        assert_eq!(
            status(&[range, reserved("\n")], 40000..=41000),
            Status::Warning
        );
        assert_eq!(
            status(&[range, reserved("40000-41000\n")], 40000..=41000),
            Status::Ok
        );
        assert_eq!(
            status(&[range, reserved("22,40000-40999\n")], 40000..=41000),
            Status::Warning
        );
        let found = outgoing(world(&[range]).path(), &(40000..=41000));
        assert!(remedy(&found).contains("ip_local_reserved_ports=40000-41000"));
    }

    #[test]
    fn name_servers_on_loopback_alone_are_a_warning() {
        let found = name_servers(&["nameserver 127.0.0.1\n".to_owned()]);
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("resolv.conf"));
        let both = ["nameserver 127.0.0.53\n", "nameserver 192.0.2.1\n"].map(str::to_owned);
        assert_eq!(name_servers(&both).status, Status::Ok);
    }
}
