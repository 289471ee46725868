//! Control groups: what is mounted ([`Hierarchies`]), what a group used ([`Usage`]), and on version 2 the group of one
//! kernel that the agent limits by itself ([`ParentCgroup`]).
//!
//! Everything takes the folder where cgroups are mounted, so that tests can give a folder of their own.

mod parent;
mod usage;

use std::path::{Path, PathBuf};

pub use self::parent::{CgroupError, ParentCgroup, remove_tree};
pub use self::usage::Usage;

/// Where Linux distributions mount cgroups.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Which versions of cgroups a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Controllers in hierarchies of their own.
    V1,
    /// As [`Mode::V1`], and a version 2 hierarchy beside them for what needs no controller.
    Hybrid,
    /// One hierarchy with all controllers.
    V2,
}

/// The cgroup hierarchies below one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    mode: Mode,
    cpuacct: Option<PathBuf>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    blkio: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Looks at the hierarchies mounted below `root` (usually [`ROOT`]). A controller that is not there is no error:
    /// its values are absent from [`Usage`].
    #[must_use]
    pub fn detect(root: &Path) -> Self {
        if root.join("cgroup.controllers").exists() {
            return Self {
                mode: Mode::V2,
                cpuacct: None,
                memory: None,
                pids: None,
                blkio: None,
                unified: Some(root.to_owned()),
            };
        }
        let unified = root.join("unified");
        let unified = unified
            .join("cgroup.controllers")
            .exists()
            .then_some(unified);
        Self {
            mode: if unified.is_some() {
                Mode::Hybrid
            } else {
                Mode::V1
            },
            cpuacct: folder(root, &["cpuacct", "cpu,cpuacct", "cpuacct,cpu"]),
            memory: folder(root, &["memory"]),
            pids: folder(root, &["pids"]),
            blkio: folder(root, &["blkio"]),
            unified,
        }
    }

    /// Which versions are mounted.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where the version 2 hierarchy is, on [`Mode::Hybrid`] too.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }
}

fn folder(root: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut candidates = names.iter().map(|name| root.join(name));
    candidates.find(|path| path.is_dir())
}

/// A path below the root of a hierarchy, whether or not it begins with `/`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_root_with_controllers_is_version_2() {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").expect("a file");
        let found = Hierarchies::detect(root.path());
        assert_eq!(found.mode(), Mode::V2);
        assert_eq!(found.unified(), Some(root.path()));
    }

    #[test]
    fn hierarchies_of_version_1_are_found_by_name_also_where_two_share_a_mount() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("cpu,cpuacct")).expect("a folder");
        fs::create_dir(root.path().join("memory")).expect("a folder");
        let found = Hierarchies::detect(root.path());
        assert_eq!(found.mode(), Mode::V1);
        assert_eq!(found.cpuacct, Some(root.path().join("cpu,cpuacct")));
        assert_eq!(found.memory, Some(root.path().join("memory")));
        assert_eq!((found.blkio, found.pids, found.unified), (None, None, None));
    }

    #[test]
    fn a_version_2_hierarchy_beside_version_1_makes_a_hybrid() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("unified")).expect("a folder");
        fs::write(root.path().join("unified/cgroup.controllers"), "\n").expect("a file");
        let found = Hierarchies::detect(root.path());
        assert_eq!(found.mode(), Mode::Hybrid);
        assert_eq!(found.unified(), Some(&*root.path().join("unified")));
    }
}
