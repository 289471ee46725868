//! What a cgroup used: each value by itself, absent when its file is.

use std::fs;
use std::path::Path;

use super::{Hierarchies, Mode, below};

/// What a cgroup and everything below it used so far; a value is absent when Linux does not tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in ns.
    pub cpu_ns: Option<u64>,
    /// Memory in bytes, page cache included.
    pub memory_bytes: Option<u64>,
    /// Highest memory so far in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
}

impl Hierarchies {
    /// What the cgroup `path` (below the root of every hierarchy) used: five small files at most.
    #[must_use]
    pub fn usage(&self, path: &Path) -> Usage {
        match (self.mode, &self.unified) {
            (Mode::V2, Some(root)) => usage_v2(&below(root, path)),
            _ => self.usage_v1(path),
        }
    }

    /// CPU time of the whole machine in ns, as its root cgroup counts it.
    #[must_use]
    pub fn node_cpu_ns(&self) -> Option<u64> {
        match (self.mode, &self.unified, &self.cpuacct) {
            (Mode::V2, Some(root), _) => cpu_v2(root),
            (_, _, Some(root)) => number(&root.join("cpuacct.usage")),
            _ => None,
        }
    }

    /// How often the out-of-memory killer struck in the cgroup `path`.
    #[must_use]
    pub fn oom_kills(&self, path: &Path) -> Option<u64> {
        let file = match (self.mode, &self.unified, &self.memory) {
            (Mode::V2, Some(root), _) => below(root, path).join("memory.events"),
            (_, _, Some(root)) => below(root, path).join("memory.oom_control"),
            _ => return None,
        };
        keyed(&fs::read_to_string(file).ok()?, "oom_kill")
    }

    /// The memory limit of the cgroup `path` in bytes; absent also when there is none.
    #[must_use]
    pub fn memory_limit(&self, path: &Path) -> Option<u64> {
        match (self.mode, &self.unified, &self.memory) {
            (Mode::V2, Some(root), _) => number(&below(root, path).join("memory.max")),
            (_, _, Some(root)) => {
                let limit = number(&below(root, path).join("memory.limit_in_bytes"))?;
                // Version 1 says "none" by the largest multiple of a page that fits.
                (limit < 1 << 62).then_some(limit)
            }
            _ => None,
        }
    }

    /// Processes and threads in the cgroup `path`.
    #[must_use]
    pub fn pids(&self, path: &Path) -> Option<u64> {
        match (self.mode, &self.unified, &self.pids) {
            (Mode::V2, Some(root), _) | (_, _, Some(root)) => {
                number(&below(root, path).join("pids.current"))
            }
            _ => None,
        }
    }

    fn usage_v1(&self, path: &Path) -> Usage {
        let group = |root: &Option<_>| root.as_deref().map(|root| below(root, path));
        let memory = group(&self.memory);
        let in_memory = |file| memory.as_ref().and_then(|group| number(&group.join(file)));
        let io = group(&self.blkio).and_then(|group| io_v1(&group));
        Usage {
            cpu_ns: group(&self.cpuacct).and_then(|group| number(&group.join("cpuacct.usage"))),
            memory_bytes: in_memory("memory.usage_in_bytes"),
            memory_peak_bytes: in_memory("memory.max_usage_in_bytes"),
            io_read_bytes: io.map(|(read, _)| read),
            io_write_bytes: io.map(|(_, write)| write),
        }
    }
}

fn usage_v2(group: &Path) -> Usage {
    let io = fs::read_to_string(group.join("io.stat")).ok();
    let io = io.as_deref();
    Usage {
        cpu_ns: cpu_v2(group),
        memory_bytes: number(&group.join("memory.current")),
        // Linux 5.19 and later.
        memory_peak_bytes: number(&group.join("memory.peak")),
        io_read_bytes: io.map(|text| sum(text, |word| word.strip_prefix("rbytes="))),
        io_write_bytes: io.map(|text| sum(text, |word| word.strip_prefix("wbytes="))),
    }
}

fn cpu_v2(group: &Path) -> Option<u64> {
    let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
    keyed(&text, "usage_usec")?.checked_mul(1000)
}

/// Bytes read and written; a container may have cgroups of its own below, which only the recursive file counts.
fn io_v1(group: &Path) -> Option<(u64, u64)> {
    let files = [
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ];
    let mut texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(group.join(file)).ok());
    let text = texts.next()?;
    let all = |kind: &str| {
        let lines = text.lines();
        let numbers = lines.filter_map(|line| line.split_once(' ')?.1.strip_prefix(kind));
        numbers
            .filter_map(|text| text.trim().parse::<u64>().ok())
            .sum()
    };
    Some((all("Read "), all("Write ")))
}

/// The only number of a file; `max` is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind a key in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| line.split_once(' '));
    values.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

fn sum(text: &str, value: impl Fn(&str) -> Option<&str>) -> u64 {
    let words = text.split_whitespace();
    words
        .filter_map(|word| value(word)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn version_1_tells_time_memory_and_the_sums_of_all_devices() {
        let root = tree(&[
            ("cpuacct/cpuacct.usage", "9000000\n"),
            ("cpuacct/b/k/cpuacct.usage", "1500000\n"),
            ("memory/b/k/memory.usage_in_bytes", "4096\n"),
            ("memory/b/k/memory.max_usage_in_bytes", "8192\n"),
            ("memory/b/k/memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory/b/k/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("pids/b/k/pids.current", "3\n"),
            (
                "blkio/b/k/blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\n8:0 Read 1\n8:0 Write 2\nTotal 33\n",
            ),
        ]);
        let found = Hierarchies::detect(root.path());
        let path = Path::new("/b/k");
        let expected = Usage {
            cpu_ns: Some(1_500_000),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(8192),
            io_read_bytes: Some(11),
            io_write_bytes: Some(22),
        };
        assert_eq!(found.usage(path), expected);
        assert_eq!(found.node_cpu_ns(), Some(9_000_000));
        assert_eq!(found.oom_kills(path), Some(2));
        assert_eq!(found.memory_limit(path), None);
        assert_eq!(found.pids(path), Some(3));
    }

    #[test]
    fn version_2_tells_the_same_values() {
        let root = tree(&[
            ("cgroup.controllers", "cpu io memory pids\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 1\n"),
            ("b/k/cpu.stat", "usage_usec 5\nuser_usec 1\n"),
            ("b/k/memory.current", "4096\n"),
            ("b/k/memory.peak", "8192\n"),
            ("b/k/memory.max", "65536\n"),
            ("b/k/memory.events", "low 0\noom 3\noom_kill 1\n"),
            ("b/k/pids.current", "3\n"),
            (
                "b/k/io.stat",
                "254:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:0 rbytes=1 wbytes=2\n",
            ),
        ]);
        let found = Hierarchies::detect(root.path());
        let path = Path::new("b/k");
        let expected = Usage {
            cpu_ns: Some(5000),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(8192),
            io_read_bytes: Some(11),
            io_write_bytes: Some(22),
        };
        assert_eq!(found.usage(path), expected);
        assert_eq!(found.node_cpu_ns(), Some(77_000));
        assert_eq!(found.oom_kills(path), Some(1));
        assert_eq!(found.memory_limit(path), Some(65536));
        assert_eq!(found.pids(path), Some(3));
    }

    #[test]
    fn a_missing_file_takes_no_other_value_with_it() {
        let root = tree(&[
            ("cgroup.controllers", "cpu\n"),
            ("k/cpu.stat", "usage_usec 5\n"),
            ("k/memory.max", "max\n"),
        ]);
        let found = Hierarchies::detect(root.path());
        let expected = Usage {
            cpu_ns: Some(5000),
            ..Usage::default()
        };
        assert_eq!(found.usage(Path::new("/k")), expected);
        assert_eq!(found.memory_limit(Path::new("/k")), None);
        assert_eq!(found.usage(Path::new("/gone")), Usage::default());
    }

    #[test]
    fn this_machine_counts_its_cpu_time() {
        let found = Hierarchies::detect(Path::new(crate::sys::cgroup::ROOT));
        assert!(found.node_cpu_ns().expect("a root cgroup with cpu time") > 0);
    }
}
