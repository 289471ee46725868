//! /proc: processes, network counters and what the node has. Takes its root, so that tests can give a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::Pid;

/// A mounted proc file system.
#[derive(Clone, Debug)]
pub struct Proc(PathBuf);

/// Bytes through network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetBytes {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
}

impl Default for Proc {
    fn default() -> Self {
        Self(PathBuf::from("/proc"))
    }
}

impl Proc {
    /// A proc file system mounted elsewhere.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self(root.to_owned())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(path))
    }

    /// When a process began, in clock ticks since boot; with its pid it names one process for ever. Absent when there
    /// is no such process.
    #[must_use]
    pub fn start_time(&self, pid: Pid) -> Option<u64> {
        self.began(pid).ok().flatten()
    }

    /// As [`Self::start_time`], for those who must not take a process for dead that cannot be looked at.
    ///
    /// # Errors
    /// When Linux refuses for another reason than that there is no such process.
    pub fn began(&self, pid: Pid) -> io::Result<Option<u64>> {
        let stat = match self.read(&format!("{pid}/stat")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            read => read?,
        };
        // The command in parentheses may hold blanks and parentheses of its own.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
        let ticks = fields.and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok());
        let none = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
        ticks.ok_or_else(none).map(Some)
    }

    /// When a process began, in seconds since 1970. Absent when there is no such process.
    #[must_use]
    pub fn started_at(&self, pid: Pid) -> Option<u64> {
        let ticks = self.start_time(pid)?;
        let stat = self.read("stat").ok()?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot: u64 = boot.trim().parse().ok()?;
        Some(boot + ticks / rustix::param::clock_ticks_per_second())
    }

    /// The pid on the host of the process that is `inner` in the pid namespace of the process `member`.
    ///
    /// # Errors
    /// When `member` is gone.
    pub fn host_pid(&self, member: Pid, inner: Pid) -> io::Result<Option<Pid>> {
        let namespace = fs::read_link(self.0.join(format!("{member}/ns/pid")))?;
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<Pid>().ok()) else {
                continue;
            };
            // Whoever vanishes meanwhile is not the one that is looked for.
            if self.inner_pid(pid) == Some(inner)
                && fs::read_link(self.0.join(format!("{pid}/ns/pid")))
                    .is_ok_and(|it| it == namespace)
            {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    }

    /// The pid that a process of the host has in its own pid namespace.
    #[must_use]
    pub fn inner_pid(&self, pid: Pid) -> Option<Pid> {
        let status = self.read(&format!("{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        line.split_whitespace().last()?.parse().ok()
    }

    /// Bytes through the interfaces whose names begin with `prefix`, in the network namespace of a process; absent when
    /// it is gone.
    #[must_use]
    pub fn net_bytes(&self, pid: Pid, prefix: &str) -> Option<NetBytes> {
        let table = self.read(&format!("{pid}/net/dev")).ok()?;
        let mut all = NetBytes::default();
        for line in table.lines() {
            let Some((name, counters)) = line.split_once(':') else {
                continue;
            };
            if name.trim().starts_with(prefix) {
                let mut counters = counters
                    .split_whitespace()
                    .map(|text| text.parse::<u64>().ok());
                all.rx += counters.next()??;
                all.tx += counters.nth(7)??;
            }
        }
        Some(all)
    }

    /// CPU time of the whole node in ns: everything but idling and waiting for devices, summed over its CPUs.
    #[must_use]
    pub fn node_cpu_ns(&self) -> Option<u64> {
        let stat = self.read("stat").ok()?;
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .filter_map(|text| text.parse().ok())
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
        let busy: u64 = ticks.iter().take(3).chain(ticks.get(5..8)?).sum();
        busy.checked_mul(1_000_000_000)
            .map(|total| total / rustix::param::clock_ticks_per_second())
    }

    /// Memory of the node in bytes.
    #[must_use]
    pub fn memory_total(&self) -> Option<u64> {
        let meminfo = self.read("meminfo").ok()?;
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
}

/// The CPUs this process may run on, in order.
///
/// # Errors
/// When Linux refuses to tell.
pub fn cpus() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let all = 0..rustix::thread::CpuSet::MAX_CPU;
    Ok(all.filter(|cpu| set.is_set(*cpu)).collect())
}

/// The node's machine in OCI's words (`amd64`, `arm64`), or in its own where OCI has none.
#[must_use]
pub fn architecture() -> String {
    let uname = rustix::system::uname();
    match uname.machine().to_string_lossy().as_ref() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(files: &[(&str, &str)]) -> (tempfile::TempDir, Proc) {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let proc = Proc::at(root.path());
        (root, proc)
    }

    fn own_pid() -> Pid {
        Pid::try_from(std::process::id()).expect("Linux keeps pids below 2^22")
    }

    #[test]
    fn a_start_time_is_found_behind_any_command_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n";
        let (_root, proc) = proc(&[("7/stat", stat)]);
        assert_eq!(proc.start_time(7), Some(4242));
        assert_eq!(proc.start_time(8), None);
    }

    #[test]
    fn the_time_of_a_start_is_counted_from_that_of_the_boot() {
        let ticks = 3 * rustix::param::clock_ticks_per_second();
        let process = format!("7 (x) S {}{ticks}", "1 ".repeat(18));
        let (_root, proc) = proc(&[("7/stat", &process), ("stat", "cpu 1\nbtime 1000\n")]);
        assert_eq!(proc.started_at(7), Some(1003));
        assert_eq!(proc.started_at(8), None);
    }

    #[test]
    fn a_living_process_keeps_its_start_time() {
        let first = Proc::default().start_time(own_pid());
        assert!(first.is_some());
        assert_eq!(Proc::default().start_time(own_pid()), first);
    }

    #[test]
    fn a_pid_of_a_namespace_is_found_on_the_host_only_in_that_namespace() {
        let (root, proc) = proc(&[
            ("20/status", "Name:\tx\nNSpid:\t20\t1\n"),
            ("21/status", "Name:\tx\nNSpid:\t21\t5\n"),
            ("30/status", "Name:\tx\nNSpid:\t30\t5\n"),
            ("self/status", "NSpid:\t21\t5\n"),
        ]);
        for (pid, namespace) in [("20", "pid:[1]"), ("21", "pid:[1]"), ("30", "pid:[2]")] {
            let folder = root.path().join(pid).join("ns");
            fs::create_dir(&folder).expect("a folder");
            std::os::unix::fs::symlink(namespace, folder.join("pid")).expect("a link");
        }
        assert_eq!(proc.host_pid(20, 5).expect("a member"), Some(21));
        assert_eq!(proc.host_pid(30, 5).expect("a member"), Some(30));
        assert_eq!(proc.host_pid(20, 9).expect("a member"), None);
        assert!(proc.host_pid(99, 5).is_err());
    }

    #[test]
    fn network_bytes_are_summed_over_interfaces_of_the_prefix() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n    \
                     lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                     eth0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  \
                     eth1:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n";
        let (_root, proc) = proc(&[("7/net/dev", table)]);
        assert_eq!(proc.net_bytes(7, "eth"), Some(NetBytes { rx: 11, tx: 22 }));
        assert_eq!(proc.net_bytes(8, "eth"), None);
    }

    #[test]
    fn busy_time_leaves_out_idling_and_waiting() {
        let (_root, proc) = proc(&[("stat", "cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1 2\n")]);
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(proc.node_cpu_ns(), Some(27 * tick));
    }

    #[test]
    fn this_node_has_memory_cpus_and_a_known_machine() {
        assert!(Proc::default().memory_total().expect("a total") > 1 << 20);
        assert!(!cpus().expect("an affinity").is_empty());
        assert!(!architecture().is_empty());
    }
}
