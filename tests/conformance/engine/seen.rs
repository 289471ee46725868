//! What Linux shows of a container: processes, namespaces, cgroups.

use std::fs;
use std::path::{Path, PathBuf};

use backendai_agent::runtime::{ContainerId, Pid};

use super::TestEngine;

/// Processes whose command line holds a text.
pub fn processes(text: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let lines = pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|(_, line)| line.contains(text)).collect()
}

/// Whether this machine has only cgroup version 2.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The roots of all hierarchies.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let entries = fs::read_dir(&root).expect("cgroups").flatten();
    let mut roots: Vec<_> = entries.map(|entry| entry.path()).collect();
    roots.push(root);
    roots.retain(|root| root.is_dir());
    roots
}

/// Where a container's cgroups are, as the engine tells it.
pub struct Cgroup(PathBuf);

/// The cgroup of a container.
pub async fn cgroup_of(engine: &TestEngine, id: &ContainerId) -> Cgroup {
    let info = engine.runtime.inspect(id).await.expect("inspect");
    Cgroup(info.cgroup.expect("it has a cgroup"))
}

impl Cgroup {
    /// Its folder: on version 1 in the hierarchy of `controller`.
    pub fn folder(&self, controller: &str) -> PathBuf {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchy = if unified() {
            root.to_owned()
        } else {
            root.join(controller)
        };
        hierarchy.join(self.0.strip_prefix("/").expect("an absolute path"))
    }

    /// The text of one of its files.
    pub fn file(&self, controller: &str, file: &str) -> String {
        let path = self.folder(controller).join(file);
        let text = fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().to_owned()
    }
}

/// The processes of a cgroup and of those below it.
pub fn members(folder: &Path) -> Vec<i32> {
    let file = folder.join("cgroup.procs");
    let text = fs::read_to_string(&file);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut pids: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(folder).expect("cgroup").flatten() {
        if entry.path().is_dir() {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

/// The namespace of this thread, as its link tells it.
pub fn own_namespace(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/thread-self/ns/{kind}"));
    link.expect("namespace").display().to_string()
}

/// The first process of a container.
pub async fn pid_of(engine: &TestEngine, id: &ContainerId) -> Pid {
    let info = engine.runtime.inspect(id).await.expect("inspect");
    info.pid.expect("it runs")
}
