//! The records of connections in `<run-dir>/network/`, and the locks that order those who change them.
//!
//! Whoever takes several takes them in this order: the bridge, the rules, a container's listener, the records, the host. The host's alone is kept
//! while others are taken again, until the first container has a bridge: its record is there meanwhile and stays while it
//! keeps the bridge, so that nobody else here is the first and waits for the host.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::outer::Outer;
use super::{Attachment, NetworkConfig, NetworkError, links};

/// Where a subnet is looked for: private addresses that engines and clouds use least.
const CANDIDATES: [(u8, u8); 8] = [
    (172, 30),
    (172, 29),
    (172, 28),
    (10, 213),
    (10, 214),
    (10, 215),
    (10, 216),
    (172, 27),
];
/// Prefix length of a chosen subnet: 4,093 containers.
const PREFIX: u8 = 20;

/// Where the records are.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    netns: PathBuf,
    /// Name of the bridge and the table.
    pub(super) name: String,
    configured: Option<Ipv4Net>,
    /// Where the bridge is, if not on the host itself.
    pub(super) outer: Option<Outer>,
}

/// The records while this process may change them: for moments only.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    store: &'a Store,
    _file: File,
}

/// What is known of a container's connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) attachment: Attachment,
    /// It is being taken away: its ports are not forwarded any more, but its address and ports are not free yet.
    #[serde(default)]
    pub(super) leaving: bool,
}

impl Store {
    pub(super) fn open(run_dir: &Path, config: NetworkConfig) -> Result<Self, NetworkError> {
        let folder = run_dir.join("network");
        let netns = run_dir.join("netns");
        for path in [&folder, &netns] {
            fs::create_dir_all(path)
                .map_err(NetworkError::host(format!("make {}", path.display())))?;
        }
        // Links' names have room for 15 bytes.
        let digest = hex::encode(Sha256::digest(run_dir.as_os_str().as_encoded_bytes()));
        let name = config
            .name
            .unwrap_or_else(|| format!("bai{}", &digest[..8]));
        Ok(Self {
            folder,
            netns,
            name,
            configured: config.subnet,
            outer: config.outer,
        })
    }

    /// The subnet: configured, recorded by an earlier process, or chosen now. Call it under the lock.
    pub(super) fn subnet(&self) -> Result<Ipv4Net, NetworkError> {
        if let Some(configured) = self.configured {
            return Ok(configured);
        }
        let path = self.subnet_file();
        let recorded = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(subnet) = recorded {
            return Ok(subnet);
        }
        let subnet = self.choose()?;
        fs::write(&path, subnet.to_string())
            .map_err(NetworkError::host(format!("write {}", path.display())))?;
        Ok(subnet)
    }

    fn subnet_file(&self) -> PathBuf {
        self.folder.join("subnet")
    }

    /// The first candidate without a route; different run directories begin at different ones.
    fn choose(&self) -> Result<Ipv4Net, NetworkError> {
        let used = links::with_host(links::routes)?;
        let digest = Sha256::digest(self.name.as_bytes());
        let blocks = 1_usize << (PREFIX - 16);
        let first = usize::from(digest[0]) % blocks;
        let all = CANDIDATES
            .iter()
            .flat_map(|(a, b)| (0..blocks).map(move |n| (*a, *b, (n + first) % blocks)));
        all.map(|(a, b, block)| {
            let third = u8::try_from(block << (24 - PREFIX)).expect("fewer than 256 blocks");
            Ipv4Net::new(Ipv4Addr::new(a, b, third, 0), PREFIX).expect("a valid prefix length")
        })
        .find(|subnet| used.iter().all(|route| !overlap(*route, *subnet)))
        .ok_or(NetworkError::NoSubnet)
    }

    /// The namespace file of a container.
    pub(super) fn netns(&self, id: &str) -> PathBuf {
        self.netns.join(id)
    }

    /// Does something in the network namespace of the bridge.
    pub(super) fn at_bridge<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        match &self.outer {
            Some(outer) => outer.inside(work),
            None => work(),
        }
    }

    /// The file that tells of the program that listens on a container's host ports.
    pub(super) fn listener(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.listener"))
    }

    /// Waits until nobody else changes the records.
    pub(super) fn lock(&self) -> Result<Locked<'_>, NetworkError> {
        Ok(Locked {
            store: self,
            _file: self.lock_file("lock", FlockOperation::LockExclusive)?,
        })
    }

    /// The bridge stays for as long as this is kept; many may keep it at once.
    pub(super) fn keep_bridge(&self) -> Result<File, NetworkError> {
        self.lock_file("bridge", FlockOperation::LockShared)
    }

    /// Waits until nobody keeps the bridge.
    pub(super) fn take_bridge(&self) -> Result<File, NetworkError> {
        self.lock_file("bridge", FlockOperation::LockExclusive)
    }

    /// Waits until nobody else writes the rules.
    pub(super) fn lock_rules(&self) -> Result<File, NetworkError> {
        self.lock_file("rules", FlockOperation::LockExclusive)
    }

    /// Has nobody else begin a container's listener; while somebody does, waits, or gives `None`. The lock is on the
    /// listener's file, which may be new and empty.
    pub(super) fn lock_listener(
        &self,
        id: &str,
        waits: bool,
    ) -> Result<Option<File>, NetworkError> {
        let path = self.listener(id);
        let how = match waits {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        let lock = || loop {
            let file = File::options().create(true).append(true).open(&path)?;
            match rustix::io::retry_on_intr(|| flock(&file, how)) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other?,
            }
            // Removed meanwhile: the next one is another file.
            let there = fs::metadata(&path).ok().map(|it| it.ino());
            if there == Some(file.metadata()?.ino()) {
                return Ok(Some(file));
            }
        };
        lock().map_err(NetworkError::host(format!("lock {}", path.display())))
    }

    fn lock_file(&self, name: &str, how: FlockOperation) -> Result<File, NetworkError> {
        let path = self.folder.join(name);
        let locked = File::create(&path).and_then(|file| {
            rustix::io::retry_on_intr(|| flock(&file, how))?;
            Ok(file)
        });
        locked.map_err(NetworkError::host(format!("lock {}", path.display())))
    }
}

impl Locked<'_> {
    /// Every record, by container.
    pub(super) fn all(&self) -> Result<Vec<(String, Record)>, NetworkError> {
        let folder = &self.store.folder;
        let entries = fs::read_dir(folder)
            .map_err(NetworkError::host(format!("list {}", folder.display())))?;
        let mut all = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Some(id) = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".json"))
            else {
                continue;
            };
            let read = fs::read(&path)
                .and_then(|data| serde_json::from_slice(&data).map_err(io::Error::other));
            match read {
                Ok(record) => all.push((id.to_owned(), record)),
                Err(error) => tracing::warn!("record {} is passed over: {error}", path.display()),
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    pub(super) fn write(&self, id: &str, record: &Record) -> Result<(), NetworkError> {
        let path = self.path(id);
        let new = path.with_extension("new");
        let data = serde_json::to_vec(record).expect("plain data");
        fs::write(&new, data)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(NetworkError::host(format!("write {}", path.display())))
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), NetworkError> {
        remove_file(&self.path(id))
    }

    /// The next container's subnet is chosen anew: the host's routes may have changed by then.
    pub(super) fn forget_subnet(&self) -> Result<(), NetworkError> {
        remove_file(&self.store.subnet_file())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.store.folder.join(format!("{id}.json"))
    }
}

/// Waits until no other agent on this host chooses a subnet: the lock is on the network namespace itself, so that those
/// with other run directories take the same one.
pub(super) fn lock_host() -> Result<File, NetworkError> {
    let locked = File::open("/proc/thread-self/ns/net").and_then(|file| {
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.map_err(NetworkError::host("lock the host's network namespace"))
}

fn remove_file(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::host(format!(
            "remove {}",
            path.display()
        ))(error)),
        _ => Ok(()),
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_has_a_name_of_its_own_that_fits_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = |sub: &str| {
            Store::open(&folder.path().join(sub), NetworkConfig::default())
                .expect("opened")
                .name
        };
        assert_ne!(name("a"), name("b"));
        assert!(name("a").len() <= 15);
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a subnet");
        assert!(overlap(net("10.0.0.0/8"), net("10.1.0.0/20")));
        assert!(overlap(net("10.1.0.0/20"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.1.0.0/20"), net("10.1.16.0/20")));
    }
}
