//! Control groups: which version, which controllers, and whether we may make groups.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::Finding;
use crate::rootless::RootlessError;
use crate::sys::cgroup::{Hierarchies, Mode};

/// The controllers that kernels are limited by.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// The file that is there in a group of version 1 when swap is counted.
const SWAP: &str = "memory/memory.memsw.limit_in_bytes";

/// Every check of this group, for hierarchies mounted below `root` in which groups of kernels are made below `base`.
pub(super) fn all(root: &Path, base: &Path) -> Vec<Finding> {
    vec![controllers(root, base), writable(root, base), swap(root)]
}

/// The finding of an ordinary user without a group to divide.
pub(super) fn none(error: &RootlessError) -> Finding {
    Finding::failed(
        "cgroup-writable",
        "no cgroup is delegated to this user",
        error.to_string(),
    )
}

/// A path below a folder, whether or not it begins with `/`.
fn below(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}

fn mode(root: &Path) -> (Mode, &'static str) {
    let mode = Hierarchies::detect(root).mode();
    let name = match mode {
        Mode::V1 => "version 1",
        Mode::Hybrid => "version 1 with version 2 beside it",
        Mode::V2 => "version 2",
    };
    (mode, name)
}

fn controllers(root: &Path, base: &Path) -> Finding {
    let check = "cgroup-controllers";
    let (mode, name) = mode(root);
    let offered = match mode {
        Mode::V2 => {
            fs::read_to_string(below(root, base).join("cgroup.controllers")).unwrap_or_default()
        }
        Mode::V1 | Mode::Hybrid => mounted(root),
    };
    let offered: Vec<&str> = offered.split([' ', ',', '\n']).collect();
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|it| !offered.contains(it))
        .collect();
    if missing.is_empty() {
        return Finding::ok(check, format!("{name} with {}", NEEDED.join(", ")));
    }
    let detail = format!("{name} without {}", missing.join(", "));
    let remedy = match mode {
        Mode::V2 => {
            "delegate them (Delegate=yes in the systemd unit, for an ordinary user Delegate=cpu cpuset io memory pids in \
             /etc/systemd/system/user@.service.d/delegate.conf, or the container's --cgroupns=host), and boot without \
             cgroup_disable="
        }
        Mode::V1 | Mode::Hybrid => {
            "mount them below /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1; and boot without cgroup_disable="
        }
    };
    Finding::failed(check, detail, remedy)
}

/// The names of version 1's folders: one controller each, or several.
fn mounted(root: &Path) -> String {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect::<Vec<_>>().join(",")
}

fn writable(root: &Path, base: &Path) -> Finding {
    let check = "cgroup-writable";
    let places: Vec<PathBuf> = match mode(root).0 {
        Mode::V2 => vec![below(root, base).join("cgroup.subtree_control")],
        Mode::V1 | Mode::Hybrid => ["cpu", "memory", "pids"]
            .map(|it| below(&root.join(it), base))
            .into(),
    };
    let refused = places
        .iter()
        .find_map(|place| Some((place, access(place, Access::WRITE_OK).err()?)));
    match refused {
        None => Finding::ok(check, "groups can be made"),
        Some((place, error)) => Finding::failed(
            check,
            format!("{}: {error}", place.display()),
            "run as root with /sys/fs/cgroup mounted for writing, or where the cgroup is delegated (systemd: Delegate=yes)",
        ),
    }
}

fn swap(root: &Path) -> Finding {
    let check = "cgroup-swap";
    let counted = mode(root).0 == Mode::V2 || root.join(SWAP).exists();
    if counted {
        return Finding::ok(check, "swap is counted");
    }
    Finding::info(
        check,
        "Linux does not count swap here (swapaccount=1 at boot makes it): kernels may swap without limit",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    #[test]
    fn controllers_of_version_2_that_are_not_delegated_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("cgroup.controllers"), "memory pids\n").expect("a file");
        let found = controllers(root.path(), Path::new("/"));
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("version 2 without cpu, cpuset"));
        assert!(remedy(&found).contains("Delegate=yes"));
        let all = "cpuset cpu io memory pids\n";
        fs::write(root.path().join("cgroup.controllers"), all).expect("a file");
        assert_eq!(controllers(root.path(), Path::new("/")).status, Status::Ok);
    }

    #[test]
    fn controllers_of_version_1_that_are_not_mounted_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["cpu,cpuacct", "cpuset", "pids"] {
            fs::create_dir(root.path().join(name)).expect("a folder");
        }
        let found = controllers(root.path(), Path::new("/"));
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.ends_with("without memory") && remedy(&found).contains("mount"));
        fs::create_dir(root.path().join("memory")).expect("a folder");
        assert_eq!(controllers(root.path(), Path::new("/")).status, Status::Ok);
    }

    #[test]
    fn an_ordinary_users_own_group_is_what_is_looked_at() {
        let root = tempfile::tempdir().expect("a folder");
        let base = root.path().join("user/scope");
        fs::create_dir_all(&base).expect("a folder");
        let file = "cgroup.controllers";
        fs::write(root.path().join(file), "cpuset cpu memory pids\n").expect("a file");
        fs::write(base.join(file), "cpu memory pids\n").expect("a file");
        fs::write(base.join("cgroup.subtree_control"), "").expect("a file");
        let base = Path::new("/user/scope");
        let found = controllers(root.path(), base);
        assert!(found.detail.ends_with("without cpuset"), "{}", found.detail);
        assert!(remedy(&found).contains("delegate.conf"));
        assert_eq!(writable(root.path(), base).status, Status::Ok);
        assert!(remedy(&none(&RootlessError::NoCgroup)).contains("Delegate=yes"));
    }

    #[test]
    fn a_machine_without_cgroups_fails() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(
            controllers(root.path(), Path::new("/")).status,
            Status::Failed
        );
        let found = writable(root.path(), Path::new("/"));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("root"));
    }

    #[test]
    fn swap_that_is_not_counted_is_told() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("memory")).expect("a folder");
        assert_eq!(swap(root.path()).status, Status::Info);
        fs::write(root.path().join(SWAP), "0").expect("a file");
        assert_eq!(swap(root.path()).status, Status::Ok);
    }
}
