//! What a container may leave behind: processes, mounts, cgroups, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::seen::{hierarchies, processes};
use super::{Kind, TestEngine};

impl TestEngine {
    /// Checks that no process, mount, cgroup or file of any container is left. A daemon's processes may still be ending.
    pub fn assert_nothing_left(&self) {
        for _ in 0..100 {
            if self.leftovers().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    fn leftovers(&self) -> Vec<String> {
        // A daemon that is this test's own has processes and mounts itself: what tells of containers are their ids.
        let mut marks: Vec<_> = self.ids().into_iter().map(|id| id.0).collect();
        marks.push(self.dir.path().display().to_string());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut left = self.files_left();
        for mark in marks {
            let mounts = mounts.lines().filter(|line| line.contains(&mark));
            left.extend(mounts.map(str::to_owned));
            let processes = processes(&mark).into_iter();
            left.extend(processes.map(|(pid, text)| format!("{pid} {text}")));
        }
        let cgroups = self.cgroups().into_iter();
        left.extend(cgroups.map(|path| path.display().to_string()));
        left
    }

    /// The cgroups of all containers, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut parents = vec![PathBuf::from("backendai")];
        if let Kind::Daemon(_, daemon) = &self.kind {
            let name = daemon.folder();
            let name = name.file_name().expect("a folder has a name");
            parents.push(Path::new("backendai-test").join(name));
        }
        let mut found = Vec::new();
        for root in hierarchies() {
            for parent in &parents {
                found.extend(self.ids().iter().map(|id| root.join(parent).join(&id.0)));
            }
        }
        found.retain(|path| path.exists());
        found
    }

    /// Files and folders of containers.
    fn files_left(&self) -> Vec<String> {
        let own = [
            "run/containers",
            "state/containers",
            "run/network",
            "run/netns",
        ];
        let is_lock = |path: &PathBuf| {
            let locks = ["bridge", "lock", "rules"].map(|name| self.path("run/network").join(name));
            locks.contains(path)
        };
        let mut left: Vec<_> = own
            .iter()
            .flat_map(|folder| fs::read_dir(self.path(folder)).into_iter().flatten())
            .map(|entry| entry.expect("entry").path())
            .filter(|path| !is_lock(path))
            .collect();
        if let Kind::Daemon(_, daemon) = &self.kind {
            for id in self.ids() {
                let kept = [
                    "data/containers",
                    "state/io.containerd.runtime.v2.task/backendai",
                    "root/io.containerd.runtime.v2.task/backendai",
                ];
                left.extend(kept.map(|folder| daemon.folder().join(folder).join(&id.0)));
            }
        }
        left.retain(|path| path.exists());
        left.iter().map(|path| path.display().to_string()).collect()
    }
}
