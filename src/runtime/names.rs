//! The files by which a container resolves names: its host name, the hosts it knows, the name servers it asks.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{ContainerSpec, Mount, MountKind, NetworkMode};

/// Where systemd-resolved keeps the real servers when /etc/resolv.conf names its own stub.
pub const SOURCES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Files to write into the root, or to mount over it, by absolute path inside.
#[must_use]
pub fn files(spec: &ContainerSpec, address: Option<Ipv4Addr>) -> Vec<(PathBuf, String)> {
    let host = spec.hostname();
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{host}\n");
    let mut files = vec![
        ("/etc/hostname".into(), format!("{host}\n")),
        ("/etc/hosts".into(), hosts),
    ];
    let read = |path: &str| fs::read_to_string(path).ok();
    let servers = match spec.network {
        NetworkMode::None => None,
        NetworkMode::Host => read(SOURCES[0]),
        NetworkMode::Bridge => {
            let texts: Vec<_> = SOURCES.iter().filter_map(|path| read(path)).collect();
            texts.iter().find_map(|text| reachable(text))
        }
    };
    files.extend(servers.map(|text| ("/etc/resolv.conf".into(), text)));
    files
}

/// Writes these files into a folder, and gives the mounts by which a container sees them. Blocks.
///
/// # Errors
/// When the folder cannot be written.
pub fn mounts(
    spec: &ContainerSpec,
    address: Option<Ipv4Addr>,
    folder: &Path,
) -> io::Result<Vec<Mount>> {
    let mounts = files(spec, address).into_iter().map(|(target, text)| {
        let source = folder.join(target.file_name().unwrap_or_default());
        fs::write(&source, text)?;
        Ok(Mount {
            kind: MountKind::Bind(source),
            target,
            read_only: false,
        })
    });
    mounts.collect()
}

/// A resolv.conf without the servers on the host's loopback interface; `None` when no server is left.
#[must_use]
pub fn reachable(text: &str) -> Option<String> {
    let server = |line: &str| {
        let rest = line.trim().strip_prefix("nameserver")?;
        rest.trim().parse::<IpAddr>().ok()
    };
    let kept = text
        .lines()
        .filter(|line| !server(line).is_some_and(|ip| ip.is_loopback()));
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    kept.lines()
        .any(|line| server(line).is_some())
        .then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_the_hosts_loopback_are_left_out() {
        let text = "search a.b\nnameserver 127.0.0.53\nnameserver 192.0.2.1\noptions edns0\n";
        let kept = reachable(text).expect("one server is left");
        assert_eq!(kept, "search a.b\nnameserver 192.0.2.1\noptions edns0\n");
        assert_eq!(reachable("nameserver ::1\nsearch a\n"), None);
    }
}
