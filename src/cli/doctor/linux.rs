//! What this Linux can do.

use std::fs;
use std::io;
use std::path::Path;

use super::{Finding, Needs};
use crate::runtime::Pid;
use crate::sys::pidfd::PidFd;

/// The first Linux with all system calls that are used (`mount_setattr`).
const OLDEST: (u32, u32) = (5, 12);
/// The first Linux that takes an overlay's lower folders one by one.
const LOWER_FOLDERS: (u32, u32) = (6, 5);
/// The kinds of namespaces that a container has.
const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// Every check of this group.
pub(super) fn all(proc: &Path, needs: Needs) -> Vec<Finding> {
    let own = Pid::try_from(std::process::id()).unwrap_or_default();
    let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
    vec![
        version(&release),
        pidfd(PidFd::open(own).map(|_| ())).needed(needs.containers),
        namespaces(proc),
        filter(proc),
        memory_programs(proc).needed(needs.containers),
    ]
}

fn version(release: &str) -> Finding {
    let check = "linux";
    let release = release.trim();
    match parse(release) {
        Some(version) if version < OLDEST => Finding::failed(
            check,
            format!("Linux {release}"),
            format!("install Linux {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        Some(version) if version < LOWER_FOLDERS => Finding::ok(
            check,
            format!("Linux {release}; images of very many layers need Linux 6.5"),
        ),
        Some(_) => Finding::ok(check, format!("Linux {release}")),
        None => Finding::warning(
            check,
            format!("cannot read the version {release:?}"),
            "mount /proc",
        ),
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn pidfd(opened: io::Result<()>) -> Finding {
    let check = "pidfd";
    match opened {
        Ok(()) => Finding::ok(check, "processes can be held by descriptors"),
        Err(error) => Finding::failed(
            check,
            format!("pidfd_open: {error}"),
            "install Linux 5.12 or later, and allow pidfd_open where a system-call filter is around the agent",
        ),
    }
}

fn namespaces(proc: &Path) -> Finding {
    let check = "namespaces";
    let folder = proc.join("self/ns");
    let missing: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|name| fs::symlink_metadata(folder.join(name)).is_err())
        .collect();
    if missing.is_empty() {
        return Finding::ok(check, NAMESPACES.join(", "));
    }
    Finding::failed(
        check,
        format!("missing: {}", missing.join(", ")),
        "run a Linux that is built with them (CONFIG_NAMESPACES and the CONFIG_*_NS options)",
    )
}

fn filter(proc: &Path) -> Finding {
    let check = "seccomp";
    match fs::read_to_string(proc.join("sys/kernel/seccomp/actions_avail")) {
        Ok(actions) if actions.split_whitespace().any(|it| it == "errno") => {
            Finding::ok(check, "system calls can be filtered")
        }
        _ => Finding::failed(
            check,
            "system calls cannot be filtered",
            "run a Linux that is built with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn memory_programs(proc: &Path) -> Finding {
    let check = "memory-programs";
    let setting = fs::read_to_string(proc.join("sys/vm/memfd_noexec")).unwrap_or_default();
    if setting.trim() == "2" {
        return Finding::warning(
            check,
            "programs in memory are refused (vm.memfd_noexec=2): a container's monitor takes megabytes more",
            "sysctl vm.memfd_noexec=1",
        );
    }
    Finding::ok(check, "programs in memory can be run")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn world(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    #[test]
    fn an_old_linux_fails_with_the_version_to_install() {
        for (release, wanted) in [
            ("4.19.0-9-amd64\n", Status::Failed),
            ("5.11.22", Status::Failed),
            ("5.12.0", Status::Ok),
            ("6.1.0-18-amd64", Status::Ok),
            ("6.18.44-fc", Status::Ok),
            ("", Status::Warning),
        ] {
            assert_eq!(version(release).status, wanted, "{release}");
        }
        assert!(remedy(&version("4.19.0")).contains("5.12"));
        assert!(version("6.1.0").detail.contains("6.5"));
    }

    #[test]
    fn a_refused_pidfd_fails() {
        let found = pidfd(Err(io::ErrorKind::Unsupported.into()));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("pidfd_open"));
    }

    #[test]
    fn namespaces_that_are_missing_are_named() {
        let root = world(&[
            ("self/ns/mnt", ""),
            ("self/ns/pid", ""),
            ("self/ns/net", ""),
        ]);
        let found = namespaces(root.path());
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("cgroup") && !found.detail.contains("net"));
        assert!(remedy(&found).contains("CONFIG_NAMESPACES"));
        assert_eq!(namespaces(Path::new("/proc")).status, Status::Ok);
    }

    #[test]
    fn a_linux_without_filters_fails() {
        let file = "sys/kernel/seccomp/actions_avail";
        assert_eq!(filter(world(&[]).path()).status, Status::Failed);
        assert!(remedy(&filter(world(&[(file, "allow")]).path())).contains("SECCOMP"));
        assert_eq!(
            filter(world(&[(file, "kill errno allow")]).path()).status,
            Status::Ok
        );
    }

    #[test]
    fn refused_programs_in_memory_are_a_warning_with_the_setting() {
        let file = "sys/vm/memfd_noexec";
        let found = memory_programs(world(&[(file, "2\n")]).path());
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("vm.memfd_noexec=1"));
        for fine in [world(&[]), world(&[(file, "1\n")])] {
            assert_eq!(memory_programs(fine.path()).status, Status::Ok);
        }
    }
}
