//! The cgroup that an ordinary user may divide among kernels: one that systemd's user manager or the operator delegated.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::sys::cgroup::{Hierarchies, Mode};

/// Name of the cgroup for the processes that were in the delegated one: on version 2 only leaves have processes where
/// controllers are passed on.
const LEAF: &str = "backendai-agent";

/// Finds the cgroup, below the root of every hierarchy, that this process is in and may divide. `own` is the text of
/// `/proc/self/cgroup`, `root` where cgroups are mounted.
pub(super) fn find(root: &Path, own: &str) -> Option<PathBuf> {
    match Hierarchies::detect(root).mode() {
        Mode::V2 => {
            let own = unified(own)?;
            let above = own
                .parent()
                .filter(|_| own.file_name().is_some_and(|name| name == LEAF));
            [above, Some(own)]
                .into_iter()
                .flatten()
                .find(|path| is_ours(&below(root, path)))
                .map(Path::to_owned)
        }
        Mode::V1 | Mode::Hybrid => in_every_hierarchy(root, own),
    }
}

/// Where this process is on version 2.
fn unified(own: &str) -> Option<&Path> {
    own.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(Path::new)
}

/// On version 1 the same path must be ours in every hierarchy with controllers: engines know one path only.
fn in_every_hierarchy(root: &Path, own: &str) -> Option<PathBuf> {
    let mut found: Option<&str> = None;
    for line in own.lines() {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        if controllers.is_empty() || controllers.starts_with("name=") {
            continue;
        }
        let names = std::iter::once(controllers).chain(controllers.split(','));
        let Some(folder) = names.map(|name| root.join(name)).find(|it| it.is_dir()) else {
            continue;
        };
        let folder = below(&folder, Path::new(path));
        if found.is_some_and(|other| other != path) || access(&folder, Access::WRITE_OK).is_err() {
            return None;
        }
        found = Some(path);
    }
    found.map(PathBuf::from)
}

fn is_ours(folder: &Path) -> bool {
    let writable = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    ["cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|file| writable(&folder.join(file)))
        && writable(folder)
}

/// Makes room for kernels: on version 2 every process of the cgroup goes into one below it.
pub(super) fn clear(root: &Path, base: &Path) -> io::Result<()> {
    if Hierarchies::detect(root).mode() != Mode::V2 {
        return Ok(());
    }
    let folder = below(root, base);
    let leaf = folder.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Processes begin others meanwhile.
    for _ in 0..100 {
        let text = fs::read_to_string(folder.join("cgroup.procs"))?;
        if text.is_empty() {
            break;
        }
        for process in text.lines() {
            match fs::write(leaf.join("cgroup.procs"), process) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Whether a process where `own` (`/proc/self/cgroup`) says may move its children below `base`: on version 2 that takes
/// the right to move processes in the nearest cgroup above both.
pub(super) fn is_reached(root: &Path, own: &str, base: &Path) -> bool {
    if Hierarchies::detect(root).mode() != Mode::V2 {
        return true;
    }
    let Some(own) = unified(own) else {
        return false;
    };
    let common: PathBuf = own
        .components()
        .zip(base.components())
        .take_while(|(a, b)| a == b)
        .map(|(part, _)| part)
        .collect();
    let file = below(root, &common).join("cgroup.procs");
    access(file, Access::WRITE_OK).is_ok()
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a version 2 hierarchy with these cgroups.
    fn tree(groups: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("cgroup.controllers"), "cpu\n").expect("a file");
        for group in groups {
            let folder = root.path().join(group);
            fs::create_dir_all(&folder).expect("a folder");
            for file in ["cgroup.procs", "cgroup.subtree_control"] {
                fs::write(folder.join(file), "").expect("a file");
            }
        }
        root
    }

    #[test]
    fn the_delegated_cgroup_is_the_own_one_or_that_above_its_leaf() {
        let root = tree(&["u/scope/backendai-agent"]);
        let find = |own: &str| find(root.path(), own);
        let leaf = Some(PathBuf::from("/u/scope/backendai-agent"));
        assert_eq!(find("0::/u/scope/backendai-agent\n"), leaf);
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            fs::write(root.path().join("u/scope").join(file), "").expect("a file");
        }
        let scope = Some(PathBuf::from("/u/scope"));
        assert_eq!(find("0::/u/scope/backendai-agent\n"), scope);
        assert_eq!(find("0::/u/scope\n"), scope);
        assert_eq!(find("0::/u\n"), None);
        assert_eq!(find("12:cpu:/u\n"), None);
    }

    #[test]
    fn on_version_1_every_hierarchy_must_have_the_same_path() {
        let root = tempfile::tempdir().expect("a folder");
        for folder in ["cpu,cpuacct/a", "memory/a", "memory/b"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let find = |own: &str| find(root.path(), own);
        let both = "3:cpu,cpuacct:/a\n2:memory:/a\n1:name=systemd:/x\n0::/\n";
        assert_eq!(find(both), Some(PathBuf::from("/a")));
        assert_eq!(find("3:cpu,cpuacct:/a\n2:memory:/b\n"), None);
        assert_eq!(find("2:memory:/none\n"), None);
        assert_eq!(find("1:name=systemd:/x\n"), None);
    }

    #[test]
    fn children_move_where_the_cgroup_above_both_is_ours() {
        let root = tree(&["u", "u/agent", "u/kernels"]);
        assert!(is_reached(
            root.path(),
            "0::/u/agent\n",
            Path::new("/u/kernels")
        ));
        assert!(!is_reached(
            root.path(),
            "0::/session\n",
            Path::new("/u/kernels")
        ));
    }
}
