//! The version 2 cgroup of one kernel: made and limited by the agent, which hands the engine only the place to start in.
//! Counts and `cgroup.kill` work on it for every engine alike, and outlive the container.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::runtime::Limits;

/// How long a cgroup whose processes were just killed may still be busy.
const BUSY: (u32, Duration) = (200, Duration::from_millis(5));

/// Why a cgroup is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Linux does not offer the controller there.
    #[error("no {controller} controller in cgroup {}; enable or delegate it there", .group.display())]
    ControllerMissing {
        /// Name of the controller.
        controller: String,
        /// The cgroup whose children need it.
        group: PathBuf,
    },
    /// Linux took the value and holds another one.
    #[error("{} is {found:?} after {wanted:?} was written", .file.display())]
    NotApplied {
        /// The limit's file.
        file: PathBuf,
        /// What was written.
        wanted: String,
        /// What it holds.
        found: String,
    },
    /// The path would lead out of the hierarchy.
    #[error("cgroup path {} must go down only", .0.display())]
    Path(PathBuf),
    /// A file or folder could not be changed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A version 2 cgroup of ours. Dropping it leaves it where it is: containers outlive the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentCgroup {
    folder: PathBuf,
}

impl ParentCgroup {
    /// Makes the cgroup `path` below the mounted hierarchy `root`, its parents too, and has every one of them pass on
    /// `controllers`. One that exists already is taken as it is.
    ///
    /// # Errors
    /// [`CgroupError::ControllerMissing`] when a controller does not arrive, [`CgroupError::Io`] when Linux refuses.
    pub fn create(root: &Path, path: &Path, controllers: &[&str]) -> Result<Self, CgroupError> {
        let mut folder = root.to_owned();
        for part in path.strip_prefix("/").unwrap_or(path).components() {
            let Component::Normal(name) = part else {
                return Err(CgroupError::Path(path.to_owned()));
            };
            pass_on(&folder, controllers)?;
            folder.push(name);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make", &folder, error));
                }
                _ => {}
            }
        }
        Ok(Self { folder })
    }

    /// The cgroup's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the limits and reads each one back.
    ///
    /// # Errors
    /// [`CgroupError::NotApplied`] when Linux holds another value than the one asked for, [`CgroupError::Io`] when it
    /// takes none, as for a controller that is not enabled.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        for (file, wanted) in written(limits) {
            let file = self.folder.join(file);
            fs::write(&file, &wanted).map_err(|error| failed("write", &file, error))?;
            let found = fs::read_to_string(&file).map_err(|error| failed("read", &file, error))?;
            let found = found.trim().to_owned();
            if !same(&wanted, &found) {
                return Err(CgroupError::NotApplied {
                    file,
                    wanted,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Kills every process in the cgroup and below it at once (Linux 5.14 and later). An absent cgroup is no error.
    ///
    /// # Errors
    /// [`CgroupError::Io`] when Linux refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let file = self.folder.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(_) if !self.folder.exists() => Ok(()),
            other => other.map_err(|error| failed("write", &file, error)),
        }
    }

    /// Removes the cgroup and what is below it, once its processes are gone: those just killed are waited for, for a
    /// second. An absent cgroup is no error.
    ///
    /// # Errors
    /// [`CgroupError::Io`] when processes still live in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.folder).map_err(|error| failed("remove", &self.folder, error))
    }
}

/// Has the children of a cgroup get the controllers; libcgroups ignores when they do not.
fn pass_on(group: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let file = group.join("cgroup.subtree_control");
    for controller in controllers {
        if words(&file)?.contains(*controller) {
            continue;
        }
        let missing = || CgroupError::ControllerMissing {
            controller: (*controller).to_owned(),
            group: group.to_owned(),
        };
        if !words(&group.join("cgroup.controllers"))?.contains(*controller) {
            return Err(missing());
        }
        fs::write(&file, format!("+{controller}"))
            .map_err(|error| failed("write", &file, error))?;
        if !words(&file)?.contains(*controller) {
            return Err(missing());
        }
    }
    Ok(())
}

fn words(file: &Path) -> Result<BTreeSet<String>, CgroupError> {
    let text = fs::read_to_string(file).map_err(|error| failed("read", file, error))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Limits as files of a version 2 cgroup and what to write into them. `/dev/shm` is a mount and not among them.
fn written(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let period = limits.cpu_period_us.unwrap_or(100_000);
        let quota = limits
            .cpu_quota_us
            .map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        all.push(("cpu.max", format!("{quota} {period}")));
    }
    let numbers = [
        ("memory.max", limits.memory_bytes),
        ("memory.swap.max", limits.swap_bytes),
        ("pids.max", limits.pids),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?.to_string())));
    all.extend(limits.cpuset.clone().map(|list| ("cpuset.cpus", list)));
    all.extend(numbers);
    all
}

/// Whether Linux holds what was written: it cuts sizes down to whole pages and joins neighbours in lists of CPUs.
fn same(wanted: &str, found: &str) -> bool {
    if wanted == found {
        return true;
    }
    if let (Ok(wanted), Ok(found)) = (wanted.parse::<u64>(), found.parse::<u64>())
        && wanted > 4096
    {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        return wanted / page * page == found;
    }
    match (cpu_list(wanted), cpu_list(found)) {
        (Some(wanted), Some(found)) => wanted == found,
        _ => false,
    }
}

/// The CPUs of a list such as `0,2-3`; absent when it is none.
fn cpu_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // No machine has more: a typing error must not fill the memory.
        if last > 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Removes a cgroup and what is below it. Processes that were just killed are waited for, for a second; absent is done.
///
/// # Errors
/// When processes still live in it.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for _ in 0..BUSY.0 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(BUSY.1),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    fs::remove_dir(folder)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::cgroup::{Hierarchies, ROOT};

    /// A folder that looks like a cgroup with all controllers passed on.
    fn group(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["cgroup.controllers", "cgroup.subtree_control"] {
            fs::write(root.path().join(name), "cpu memory\n").expect("a file");
        }
        for name in files {
            fs::write(root.path().join(name), "max\n").expect("a file");
        }
        root
    }

    #[test]
    fn every_limit_is_in_its_file() {
        let limits = Limits {
            cpu_quota_us: Some(150_000),
            cpuset: Some("0,2-3".to_owned()),
            memory_bytes: Some(1 << 30),
            swap_bytes: Some(0),
            pids: Some(64),
            ..Limits::default()
        };
        let expected = [
            ("cpu.max", "150000 100000"),
            ("cpuset.cpus", "0,2-3"),
            ("memory.max", "1073741824"),
            ("memory.swap.max", "0"),
            ("pids.max", "64"),
        ];
        let files: Vec<&str> = expected.iter().map(|(file, _)| *file).collect();
        let root = group(&files);
        let cgroup = ParentCgroup {
            folder: root.path().to_owned(),
        };
        cgroup.limit(&limits).expect("limits that are applied");
        for (file, value) in expected {
            assert_eq!(
                fs::read_to_string(root.path().join(file)).expect("a file"),
                value
            );
        }
        assert!(written(&Limits::default()).is_empty());
    }

    #[test]
    fn a_limit_counts_as_applied_when_only_its_form_differs() {
        assert!(same("1048577", "1048576"));
        assert!(same("0,1,2", "0-2"));
        assert!(!same("1048576", "max"));
        assert!(!same("64", "63"));
        assert!(!same("0-2", "0-1"));
        assert!(!same("100000 100000", "max 100000"));
    }

    #[test]
    fn a_limit_without_its_file_is_an_error_that_names_the_file() {
        let cgroup = ParentCgroup {
            folder: PathBuf::from("/sys/fs/cgroup/no such group"),
        };
        let limits = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        let error = cgroup.limit(&limits).expect_err("no such group");
        assert!(
            error.to_string().contains("no such group/pids.max"),
            "{error}"
        );
    }

    #[test]
    fn a_controller_that_is_passed_on_already_needs_no_writing() {
        let root = group(&[]);
        let file = root.path().join("cgroup.subtree_control");
        let made = ParentCgroup::create(root.path(), Path::new("/k"), &["cpu", "memory"]);
        assert_eq!(made.expect("a group").folder(), root.path().join("k"));
        assert_eq!(fs::read_to_string(file).expect("a file"), "cpu memory\n");
    }

    #[test]
    fn a_missing_controller_is_named() {
        let root = group(&[]);
        let error = ParentCgroup::create(root.path(), Path::new("k"), &["pids"]);
        let error = error.expect_err("no pids controller").to_string();
        assert!(
            error.starts_with("no pids controller in cgroup /"),
            "{error}"
        );
        assert!(!root.path().join("k").exists());
    }

    #[test]
    fn a_path_that_leads_up_is_refused() {
        let root = group(&[]);
        let made = ParentCgroup::create(root.path(), Path::new("k/../../x"), &[]);
        assert!(matches!(made, Err(CgroupError::Path(_))));
    }

    /// On a version 2 hierarchy of this machine, if we may write to one.
    #[test]
    fn a_killed_cgroup_is_empty_and_can_be_removed_twice() {
        let found = Hierarchies::detect(Path::new(ROOT));
        let Some(root) = found
            .unified()
            .filter(|_| rustix::process::geteuid().is_root())
        else {
            eprintln!("skipped: needs root and a version 2 cgroup hierarchy");
            return;
        };
        let name = format!("backendai-test-{}/kernel", std::process::id());
        let cgroup = ParentCgroup::create(root, Path::new(&name), &[]).expect("a cgroup");
        let inner = cgroup.folder().join("container");
        fs::create_dir(&inner).expect("a cgroup below");
        let mut child = Command::new("sleep")
            .arg("600")
            .stdout(Stdio::null())
            .spawn()
            .expect("a process");
        let entered = fs::write(inner.join("cgroup.procs"), child.id().to_string());
        let killed = cgroup.kill();
        if entered.is_err() || killed.is_err() {
            // The child may not have been reached: it must not outlive the test.
            child.kill().expect("our own child");
        }
        let status = child.wait().expect("our own child");
        cgroup.remove().expect("an empty cgroup");
        cgroup.remove().expect("an absent cgroup");
        cgroup.kill().expect("an absent cgroup");
        let parent = cgroup.folder().parent().expect("below the root");
        fs::remove_dir(parent).expect("the test's own cgroup");
        entered.expect("entering our own cgroup");
        killed.expect("our own cgroup");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
    }
}
