//! Statistics of kernels, sampled from Linux and not from the engine; the last sample of the dead is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::agent::request::KernelId;
use crate::runtime::Pid;
use crate::sys::cgroup::{self, Hierarchies};
use crate::sys::proc::Proc;

/// The numbers of one kernel (19.03 agent, stats.py; the twelve Redis fields).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelStats {
    /// CPU time at the previous sample, ms.
    pub precpu_used: f64,
    /// CPU time, ms.
    pub cpu_used: f64,
    /// CPU time of the whole node at the previous sample, ms.
    pub precpu_system_used: f64,
    /// CPU time of the whole node, ms.
    pub cpu_system_used: f64,
    /// Highest memory use, bytes.
    pub mem_max_bytes: u64,
    /// Memory use, bytes.
    pub mem_cur_bytes: u64,
    /// Received bytes; never decreases.
    pub net_rx_bytes: u64,
    /// Sent bytes; never decreases.
    pub net_tx_bytes: u64,
    /// Bytes read from block devices; never decreases.
    pub io_read_bytes: u64,
    /// Bytes written to block devices; never decreases.
    pub io_write_bytes: u64,
    /// Always 0.
    pub io_max_scratch_size: u64,
    /// Always 0.
    pub io_cur_scratch_size: u64,
}

/// Where the numbers of one kernel are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kernel.
    pub kernel: KernelId,
    /// Its cgroup, as a path below the root of every hierarchy (`ContainerInfo::cgroup`).
    pub cgroup: PathBuf,
    /// A process in its network namespace; network counters stand still without one.
    pub pid: Option<Pid>,
    /// How the names of the counted interfaces in there begin: `eth`.
    pub interface: String,
}

/// What one sweep over all living kernels gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    /// CPU time of all kernels since the previous sweep, in percent of one core; may exceed 100; 0 in the first sweep.
    pub cpu_pct: f64,
    /// Memory of all kernels, bytes.
    pub mem_cur_bytes: u64,
    /// The sample of each kernel.
    pub kernels: HashMap<KernelId, KernelStats>,
}

/// Samples kernels, a few small reads for each, and keeps the last sample of every kernel until it is taken.
///
/// Blocking, but only on files that Linux keeps in memory.
#[derive(Debug)]
pub struct StatsCollector {
    cgroups: Hierarchies,
    proc: Proc,
    last: HashMap<KernelId, KernelStats>,
    swept: Option<Instant>,
}

impl Default for StatsCollector {
    fn default() -> Self {
        Self::open(Path::new(cgroup::ROOT), Path::new("/proc"))
    }
}

impl StatsCollector {
    /// Samples from cgroups and a proc file system mounted at these places.
    #[must_use]
    pub fn open(cgroup_root: &Path, proc_root: &Path) -> Self {
        Self {
            cgroups: Hierarchies::detect(cgroup_root),
            proc: Proc::at(proc_root),
            last: HashMap::new(),
            swept: None,
        }
    }

    /// Samples all living kernels. Kernels that are not among them keep their last sample.
    pub fn sweep(&mut self, living: &[Target], now: Instant) -> Sweep {
        let node_cpu = self.node_cpu_ms();
        let mut sweep = Sweep::default();
        let mut used = 0.0;
        for target in living {
            let stats = self.sample_beside(target, node_cpu);
            used += stats.cpu_used - stats.precpu_used;
            sweep.mem_cur_bytes = sweep.mem_cur_bytes.saturating_add(stats.mem_cur_bytes);
            sweep.kernels.insert(target.kernel.clone(), stats);
        }
        if let Some(before) = self.swept.replace(now) {
            let passed = now.saturating_duration_since(before).as_secs_f64() * 1000.0;
            sweep.cpu_pct = if passed > 0.0 {
                used / passed * 100.0
            } else {
                0.0
            };
        }
        sweep
    }

    /// Samples one kernel out of turn: when its container is dead and its cgroup is still there.
    pub fn sample(&mut self, target: &Target) -> KernelStats {
        let node_cpu = self.node_cpu_ms();
        self.sample_beside(target, node_cpu)
    }

    /// Gives the last sample of a kernel and forgets the kernel.
    pub fn take(&mut self, kernel: &KernelId) -> Option<KernelStats> {
        self.last.remove(kernel)
    }

    fn sample_beside(&mut self, target: &Target, node_cpu: Option<f64>) -> KernelStats {
        let usage = self.cgroups.usage(&target.cgroup);
        let last = self.last.entry(target.kernel.clone()).or_default();
        let Some(cpu_ns) = usage.cpu_ns else {
            // The cgroup is gone: the previous sample counts on, with no time in between (19.03 agent, stats.py).
            last.precpu_used = last.cpu_used;
            last.precpu_system_used = last.cpu_system_used;
            return *last;
        };
        let net = target
            .pid
            .and_then(|pid| self.proc.net_bytes(pid, &target.interface))
            .unwrap_or_default();
        let cpu_used = milliseconds(cpu_ns);
        let cpu_system_used = node_cpu.unwrap_or(last.cpu_system_used);
        let memory = usage.memory_bytes.unwrap_or(last.mem_cur_bytes);
        *last = KernelStats {
            // A restarted kernel counts from 0 again: no time is negative.
            precpu_used: last.cpu_used.min(cpu_used),
            cpu_used,
            precpu_system_used: last.cpu_system_used.min(cpu_system_used),
            cpu_system_used,
            mem_max_bytes: usage
                .memory_peak_bytes
                .unwrap_or(memory)
                .max(last.mem_max_bytes),
            mem_cur_bytes: memory,
            net_rx_bytes: net.rx.max(last.net_rx_bytes),
            net_tx_bytes: net.tx.max(last.net_tx_bytes),
            io_read_bytes: usage.io_read_bytes.unwrap_or(0).max(last.io_read_bytes),
            io_write_bytes: usage.io_write_bytes.unwrap_or(0).max(last.io_write_bytes),
            io_max_scratch_size: 0,
            io_cur_scratch_size: 0,
        };
        *last
    }

    fn node_cpu_ms(&self) -> Option<f64> {
        let cgroups = self.cgroups.node_cpu_ns();
        cgroups
            .or_else(|| self.proc.node_cpu_ns())
            .map(milliseconds)
    }
}

/// Exact below 2^53 ns, which is 104 days of one core; after that to the microsecond.
fn milliseconds(ns: u64) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "the wire carries floats; the loss is below a microsecond"
    )]
    let ns = ns as f64;
    ns / 1e6
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// A node whose cgroups (version 1) and /proc are folders.
    struct Node {
        root: tempfile::TempDir,
        collector: StatsCollector,
        began: Instant,
    }

    impl Node {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a folder");
            for folder in ["cgroup/cpuacct", "cgroup/memory", "cgroup/blkio", "proc"] {
                fs::create_dir_all(root.path().join(folder)).expect("a folder");
            }
            let collector =
                StatsCollector::open(&root.path().join("cgroup"), &root.path().join("proc"));
            let node = Self {
                root,
                collector,
                began: Instant::now(),
            };
            node.write("cgroup/cpuacct/cpuacct.usage", "1000000000\n");
            node
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        fn kernel_used(&self, name: &str, cpu_ms: u64, memory: u64) {
            let cpu = format!("{}\n", cpu_ms * 1_000_000);
            self.write(&format!("cgroup/cpuacct/b/{name}/cpuacct.usage"), &cpu);
            let group = format!("cgroup/memory/b/{name}");
            self.write(
                &format!("{group}/memory.usage_in_bytes"),
                &format!("{memory}\n"),
            );
            let peak = format!("{}\n", memory * 2);
            self.write(&format!("{group}/memory.max_usage_in_bytes"), &peak);
        }

        fn network_carried(&self, pid: Pid, rx: u64, tx: u64) {
            let line = format!("eth0: {rx} 0 0 0 0 0 0 0 {tx} 0 0 0 0 0 0 0\n");
            self.write(&format!("proc/{pid}/net/dev"), &line);
        }

        fn remove(&self, path: &str) {
            fs::remove_dir_all(self.root.path().join(path)).expect("a folder");
        }

        fn sweep(&mut self, names: &[&str], second: u64) -> Sweep {
            let living: Vec<Target> = names.iter().map(|name| target(name)).collect();
            let now = self.began + Duration::from_secs(second);
            self.collector.sweep(&living, now)
        }
    }

    fn target(name: &str) -> Target {
        Target {
            kernel: KernelId::parse(name).expect("a plain name"),
            cgroup: PathBuf::from(format!("/b/{name}")),
            pid: Some(7),
            interface: "eth".to_owned(),
        }
    }

    fn of(sweep: &Sweep, name: &str) -> KernelStats {
        sweep.kernels[&target(name).kernel]
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "whole milliseconds are exact")]
    fn each_sample_carries_the_times_of_the_one_before() {
        let mut node = Node::new();
        node.kernel_used("k", 100, 4096);
        let first = of(&node.sweep(&["k"], 0), "k");
        assert_eq!((first.precpu_used, first.cpu_used), (0.0, 100.0));
        assert_eq!(
            (first.precpu_system_used, first.cpu_system_used),
            (0.0, 1000.0)
        );
        assert_eq!((first.mem_cur_bytes, first.mem_max_bytes), (4096, 8192));

        node.kernel_used("k", 350, 1024);
        node.write("cgroup/cpuacct/cpuacct.usage", "3000000000\n");
        let second = of(&node.sweep(&["k"], 1), "k");
        assert_eq!((second.precpu_used, second.cpu_used), (100.0, 350.0));
        assert_eq!(
            (second.precpu_system_used, second.cpu_system_used),
            (1000.0, 3000.0)
        );
        assert_eq!((second.mem_cur_bytes, second.mem_max_bytes), (1024, 8192));
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "whole milliseconds are exact")]
    fn a_sample_that_cannot_be_read_repeats_the_last_with_no_time_in_between() {
        let mut node = Node::new();
        node.kernel_used("k", 100, 4096);
        let before = of(&node.sweep(&["k"], 0), "k");
        node.remove("cgroup/cpuacct/b/k");
        let after = of(&node.sweep(&["k"], 1), "k");
        assert_eq!(after.precpu_used, before.cpu_used);
        assert_eq!(after.precpu_system_used, before.cpu_system_used);
        let shifted = KernelStats {
            precpu_used: before.precpu_used,
            precpu_system_used: before.precpu_system_used,
            ..after
        };
        assert_eq!(shifted, before);
    }

    #[test]
    fn network_and_io_counters_never_decrease() {
        let mut node = Node::new();
        node.kernel_used("k", 100, 4096);
        let io = "cgroup/blkio/b/k/blkio.throttle.io_service_bytes";
        node.write(io, "8:0 Read 5\n8:0 Write 6\nTotal 11\n");
        node.network_carried(7, 30, 40);
        let counters = |stats: KernelStats| {
            let net = (stats.net_rx_bytes, stats.net_tx_bytes);
            (net, (stats.io_read_bytes, stats.io_write_bytes))
        };
        let expected = ((30, 40), (5, 6));
        assert_eq!(counters(of(&node.sweep(&["k"], 0), "k")), expected);
        node.write(io, "Total 0\n");
        node.remove("proc/7");
        assert_eq!(counters(of(&node.sweep(&["k"], 1), "k")), expected);
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "whole milliseconds are exact")]
    fn the_node_uses_what_its_living_kernels_use() {
        let mut node = Node::new();
        node.kernel_used("a", 1000, 100);
        node.kernel_used("b", 1000, 200);
        let first = node.sweep(&["a", "b"], 0);
        assert_eq!((first.cpu_pct, first.mem_cur_bytes), (0.0, 300));
        node.kernel_used("a", 2500, 100);
        node.kernel_used("b", 1500, 250);
        let second = node.sweep(&["a", "b"], 2);
        assert_eq!((second.cpu_pct, second.mem_cur_bytes), (100.0, 350));
        // One that vanished takes its sum with it and does not make the rest negative.
        node.kernel_used("a", 2600, 100);
        let third = node.sweep(&["a"], 3);
        assert_eq!((third.cpu_pct, third.mem_cur_bytes), (10.0, 100));
        assert_eq!(third.kernels.len(), 1);
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "whole milliseconds are exact")]
    fn a_restarted_kernel_begins_to_count_its_time_anew() {
        let mut node = Node::new();
        node.kernel_used("k", 5000, 4096);
        node.sweep(&["k"], 0);
        node.kernel_used("k", 20, 4096);
        let sweep = node.sweep(&["k"], 1);
        let stats = of(&sweep, "k");
        assert_eq!((stats.precpu_used, stats.cpu_used), (20.0, 20.0));
        assert_eq!(sweep.cpu_pct, 0.0);
    }

    #[test]
    fn the_last_sample_of_the_dead_is_kept_until_it_is_taken() {
        let mut node = Node::new();
        node.kernel_used("k", 100, 4096);
        let alive = of(&node.sweep(&["k"], 0), "k");
        node.kernel_used("k", 130, 4096);
        let dead = node.collector.sample(&target("k"));
        assert!(dead.cpu_used > alive.cpu_used);
        node.remove("cgroup");
        assert!(node.sweep(&[], 1).kernels.is_empty());
        let kernel = target("k").kernel;
        assert_eq!(node.collector.take(&kernel), Some(dead));
        assert_eq!(node.collector.take(&kernel), None);
    }

    #[test]
    fn a_kernel_without_any_files_has_zeros() {
        let mut node = Node::new();
        let stats = of(&node.sweep(&["ghost"], 0), "ghost");
        assert_eq!(stats, KernelStats::default());
    }

    #[test]
    fn this_machine_has_used_time() {
        let mut collector = StatsCollector::default();
        let own = Target {
            kernel: KernelId::parse("own").expect("a plain name"),
            cgroup: PathBuf::from("/"),
            pid: Pid::try_from(std::process::id()).ok(),
            interface: String::new(),
        };
        let stats = collector.sample(&own);
        assert!(stats.cpu_used > 0.0, "{stats:?}");
        assert!(stats.cpu_system_used > 0.0, "{stats:?}");
    }
}
