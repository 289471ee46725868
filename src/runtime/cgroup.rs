//! The cgroups of a container: one folder of the same path in every hierarchy.
//!
//! The agent makes them before libcontainer does and removes them itself: a folder that exists keeps its parent alive,
//! so that creating and removing may go on side by side, and the parent goes with the last container.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::runtime::{BoxError, Limits, Pid};
use crate::sys::cgroup::{ParentCgroup, remove_tree};
use crate::sys::pidfd::PidFd;
use crate::sys::userns;

/// The mounted cgroup hierarchies of this machine.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    roots: Vec<PathBuf>,
    memory: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads the mount table.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads the text of a `mountinfo`.
    pub fn parse(mountinfo: &str) -> Self {
        let mut all = Self {
            roots: Vec::new(),
            memory: None,
            unified: None,
        };
        for line in mountinfo.lines() {
            let Some((mount, source)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut source = source.split(' ');
            let kind = source.next();
            let options = source.nth(1).unwrap_or_default();
            match kind {
                // A named hierarchy belongs to whoever named it: systemd.
                Some("cgroup") if !options.contains("name=") && !all.roots.contains(&point) => {
                    if options.split(',').any(|option| option == "memory") {
                        all.memory = Some(point.clone());
                    }
                    all.roots.push(point);
                }
                Some("cgroup2") if all.unified.is_none() => all.unified = Some(point),
                _ => {}
            }
        }
        if all.roots.is_empty() {
            all.roots.extend(all.unified.clone());
        }
        all
    }

    /// Makes the cgroup `path` in every hierarchy, its parents too.
    pub fn create(&self, path: &Path) -> io::Result<()> {
        for root in &self.roots {
            create_below(&below(root, path))?;
        }
        Ok(())
    }

    /// Removes the cgroup `path` and what is below it, then its parent if that is empty. Its processes must be dead or dying.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        for root in &self.roots {
            let folder = below(root, path);
            remove_tree(&folder).map_err(|error| named(&folder, &error))?;
            // Other containers may be in it, and others may be at it: whoever is last removes it.
            let _ = folder
                .parent()
                .filter(|parent| *parent != root)
                .map(fs::remove_dir);
        }
        Ok(())
    }

    /// Kills all in the cgroup `path` where Linux can do that, which takes no right on the processes: on v2; tells whether it
    /// can.
    pub fn kill(&self, path: &Path) -> io::Result<bool> {
        let Some(root) = self.unified.as_ref().filter(|_| self.is_unified()) else {
            return Ok(false);
        };
        let file = below(root, path).join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true).map_err(|error| named(&file, &error)),
        }
    }

    /// Whether only cgroup v2 is there: then the agent applies the limits, else the OCI spec carries them.
    pub fn is_unified(&self) -> bool {
        self.unified
            .as_ref()
            .is_some_and(|root| self.roots.contains(root))
    }

    /// The cgroup that libcontainer uses. On v2 it is one below ours, whose limits and totals nobody else writes.
    pub fn inner(&self, path: &Path) -> PathBuf {
        if self.is_unified() {
            path.join("container")
        } else {
            path.to_owned()
        }
    }

    /// Puts this process into the cgroup of a container.
    pub fn join(&self, path: &Path) -> io::Result<()> {
        for root in &self.roots {
            let file = below(root, &self.inner(path)).join("cgroup.procs");
            fs::write(&file, "0").map_err(|error| named(&file, &error))?;
        }
        Ok(())
    }

    /// On v2, writes the limits and reads them back; what Linux does not take is an error. Swap that Linux was told not
    /// to count cannot be limited: it is taken out of `limits`.
    pub fn limit(&self, path: &Path, limits: &mut Limits) -> Result<(), BoxError> {
        let Some(root) = self.unified.as_ref().filter(|_| self.is_unified()) else {
            let counter = |root: &PathBuf| root.join("memory.memsw.limit_in_bytes");
            leave_out_swap(limits, self.memory.as_ref().map(counter));
            if userns::inside() {
                self.limit_v1(path, limits)?;
            }
            return Ok(());
        };
        // What the cgroup above all of ours gets: all there is, or what was delegated.
        let base = path.parent().and_then(Path::parent);
        let base = below(root, base.unwrap_or(Path::new("/")));
        let offered = fs::read_to_string(base.join("cgroup.controllers"))
            .map_err(|error| named(&base, &error))?;
        let controllers = controllers(limits, &offered);
        let parent = ParentCgroup::create(root, path, &controllers)?;
        leave_out_swap(limits, Some(parent.folder().join("memory.swap.max")));
        Ok(parent.limit(limits)?)
    }

    /// Writes the limits on version 1, for root of a user namespace: libcontainer would set rules of devices with them, which
    /// only the machine's root may.
    fn limit_v1(&self, path: &Path, limits: &Limits) -> io::Result<()> {
        for (file, value) in written_v1(limits) {
            let mut groups = self.roots.iter().map(|root| below(root, path));
            let group = groups.find(|group| group.join(file).exists());
            let group = group.ok_or_else(|| {
                let text = format!("no hierarchy has {file}: mount its controller");
                io::Error::new(ErrorKind::NotFound, text)
            })?;
            if file == CPUS
                && let Some(above) = group.parent()
            {
                inherit_cpus(above)?;
                inherit_cpus(&group)?;
            }
            let file = group.join(file);
            fs::write(&file, value).map_err(|error| named(&file, &error))?;
        }
        Ok(())
    }

    /// Whether Linux killed a process of this cgroup for want of memory.
    pub fn oom_killed(&self, path: &Path) -> bool {
        self.oom_counter(path)
            .is_some_and(|file| backendai_monitor::oom_kills(&file) > 0)
    }

    /// Waits for the end of the first process of a container, and tells whether memory ran out in its cgroup: Linux
    /// counts that until the cgroup is removed, which is soon.
    pub async fn oom_killed_at_end(&self, pid: Pid, path: &Path) -> bool {
        match PidFd::open(pid) {
            Ok(Some(process)) => process.ended().await.is_ok() && self.oom_killed(path),
            _ => false,
        }
    }

    /// The file that counts such kills.
    pub fn oom_counter(&self, path: &Path) -> Option<PathBuf> {
        match (&self.memory, &self.unified) {
            (Some(root), _) => Some(below(root, path).join("memory.oom_control")),
            (None, Some(root)) => Some(below(root, path).join("memory.events")),
            (None, None) => None,
        }
    }
}

/// The cgroup of a process, the same in every hierarchy where its engine has put it.
#[must_use]
pub fn of(pid: Pid) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    path_of(&text)
}

fn path_of(text: &str) -> Option<PathBuf> {
    let mut lines = text.lines().map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        )
    });
    let all: Vec<_> = lines.by_ref().collect();
    let of = |name: &str| {
        all.iter()
            .find(|(controllers, _)| controllers.split(',').any(|it| it == name))
    };
    let (_, path) = of("memory").or_else(|| of(""))?;
    Some(PathBuf::from(path))
}

/// The controllers of a kernel's cgroup on v2: those that its limits need, and those that count for the statistics
/// where Linux offers them.
fn controllers<'a>(limits: &Limits, offered: &'a str) -> Vec<&'a str> {
    let needed = [
        ("cpu", limits.cpu_quota_us.is_some()),
        ("cpuset", limits.cpuset.is_some()),
        ("memory", limits.memory_bytes.is_some()),
        ("pids", limits.pids.is_some()),
    ];
    let needed = needed.into_iter().filter(|(_, needed)| *needed);
    let mut all: Vec<&str> = needed.map(|(name, _)| name).collect();
    let counting = ["cpu", "memory", "io", "pids"];
    let offered = offered
        .split_whitespace()
        .filter(|name| counting.contains(name));
    for name in offered {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// The file of version 1 that lists the CPUs of a cgroup.
const CPUS: &str = "cpuset.cpus";

/// Limits as files of version 1, in an order in which Linux takes them.
fn written_v1(limits: &Limits) -> Vec<(&'static str, String)> {
    let quota = limits.cpu_quota_us.map(|quota| quota.to_string());
    let period = limits.cpu_period_us.map(|period| period.to_string());
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    // Version 1 counts memory and swap together.
    let both = limits
        .memory_bytes
        .zip(limits.swap_bytes)
        .map(|(memory, swap)| memory.saturating_add(swap));
    let all = [
        ("cpu.cfs_period_us", period),
        ("cpu.cfs_quota_us", quota),
        (CPUS, limits.cpuset.clone()),
        ("memory.limit_in_bytes", number(limits.memory_bytes)),
        ("memory.memsw.limit_in_bytes", number(both)),
        ("pids.max", number(limits.pids)),
    ];
    let given = all.into_iter();
    given
        .filter_map(|(file, value)| Some((file, value?)))
        .collect()
}

/// A new cgroup of version 1 has no CPUs and no memory nodes: gives it those of the one above.
fn inherit_cpus(group: &Path) -> io::Result<()> {
    let Some(above) = group.parent() else {
        return Ok(());
    };
    for name in [CPUS, "cpuset.mems"] {
        let file = group.join(name);
        if fs::read_to_string(&file)?.trim().is_empty() {
            fs::write(&file, fs::read(above.join(name))?).map_err(|error| named(&file, &error))?;
        }
    }
    Ok(())
}

/// Takes the limit of swap out where the file that would hold it is not there.
fn leave_out_swap(limits: &mut Limits, file: Option<PathBuf>) {
    if limits.swap_bytes.is_some() && !file.is_some_and(|file| file.exists()) {
        tracing::debug!("this Linux does not count swap: it is not limited");
        limits.swap_bytes = None;
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cgroup {}: {error}", path.display()))
}

/// Makes a folder and its parents; begins again when someone removes an empty parent meanwhile.
fn create_below(folder: &Path) -> io::Result<()> {
    for _ in 0..100 {
        match fs::create_dir_all(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(named(folder, &error)),
            Ok(()) => return Ok(()),
        }
    }
    Err(named(folder, &io::Error::from(ErrorKind::NotFound)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 31 0:28 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory
34 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn on_a_hybrid_machine_the_first_version_is_used_and_systemds_own_is_left_alone() {
        let all = Hierarchies::parse(HYBRID);
        let names = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"].map(PathBuf::from);
        assert_eq!(all.roots, names);
        assert!(!all.is_unified());
        assert_eq!(
            all.inner(Path::new("/backendai/a")),
            Path::new("/backendai/a")
        );
    }

    #[test]
    fn on_a_unified_machine_the_container_is_one_below_its_limits() {
        let all = Hierarchies::parse("35 31 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
        assert!(all.is_unified());
        assert_eq!(
            all.inner(Path::new("/backendai/a")),
            Path::new("/backendai/a/container")
        );
    }

    #[test]
    fn what_limits_need_is_asked_for_and_what_counts_where_it_is_offered() {
        let limits = Limits {
            cpuset: Some("0".to_owned()),
            ..Limits::default()
        };
        assert_eq!(
            controllers(&limits, "cpuset cpu hugetlb"),
            ["cpuset", "cpu"]
        );
        assert_eq!(controllers(&limits, ""), ["cpuset"]);
    }

    #[test]
    fn swap_is_limited_where_linux_counts_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("memory.memsw.limit_in_bytes");
        let all = Hierarchies {
            roots: vec![dir.path().to_owned()],
            memory: Some(dir.path().to_owned()),
            unified: None,
        };
        for (there, left) in [(true, Some(1)), (false, None)] {
            fs::write(&file, "").expect("write");
            if !there {
                fs::remove_file(&file).expect("remove");
            }
            let mut limits = Limits {
                swap_bytes: Some(1),
                ..Limits::default()
            };
            all.limit(Path::new("/backendai/a"), &mut limits)
                .expect("limit");
            assert_eq!(limits.swap_bytes, left);
        }
    }

    #[test]
    fn limits_of_version_1_are_written_into_the_hierarchy_that_has_them() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (cpuset, memory) = (dir.path().join("cpuset"), dir.path().join("memory"));
        let all = Hierarchies {
            roots: vec![cpuset.clone(), memory.clone()],
            memory: Some(memory.clone()),
            unified: None,
        };
        let path = Path::new("/u/backendai/a");
        all.create(path).expect("create");
        for group in ["u", "u/backendai", "u/backendai/a"] {
            for name in [CPUS, "cpuset.mems"] {
                let text = if group == "u" { "0-3\n" } else { "\n" };
                fs::write(cpuset.join(group).join(name), text).expect("write");
            }
        }
        let group = below(&memory, path);
        for name in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
            fs::write(group.join(name), "").expect("write");
        }
        let limits = Limits {
            cpuset: Some("1".to_owned()),
            memory_bytes: Some(4096),
            swap_bytes: Some(1),
            ..Limits::default()
        };
        all.limit_v1(path, &limits).expect("limit");
        let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).expect("read");
        assert_eq!(read(&cpuset.join("u/backendai"), CPUS), "0-3\n");
        assert_eq!(read(&below(&cpuset, path), CPUS), "1");
        assert_eq!(read(&below(&cpuset, path), "cpuset.mems"), "0-3\n");
        assert_eq!(read(&group, "memory.limit_in_bytes"), "4096");
        assert_eq!(read(&group, "memory.memsw.limit_in_bytes"), "4097");
        let limits = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        let error = all.limit_v1(path, &limits).expect_err("no such controller");
        assert!(error.to_string().contains("pids.max"), "{error}");
    }

    #[test]
    fn a_parent_goes_with_its_last_child() {
        let dir = tempfile::tempdir().expect("temp dir");
        let all = Hierarchies {
            roots: vec![dir.path().to_owned()],
            memory: None,
            unified: None,
        };
        for name in ["/backendai/a", "/backendai/b/container"] {
            all.create(Path::new(name)).expect("create");
        }
        all.remove(Path::new("/backendai/a")).expect("remove");
        all.remove(Path::new("/backendai/a")).expect("remove again");
        assert!(dir.path().join("backendai/b").exists());
        all.remove(Path::new("/backendai/b")).expect("remove");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn the_cgroup_is_that_of_memory_or_the_only_one() {
        let version_1 = "9:name=systemd:/a\n4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n0::/y\n";
        assert_eq!(path_of(version_1), Some("/docker/x".into()));
        assert_eq!(
            path_of("0::/system.slice/docker-x.scope\n"),
            Some("/system.slice/docker-x.scope".into())
        );
        assert_eq!(path_of(""), None);
    }
}
