//! The cgroups of a container: one folder of the same path in every hierarchy.
//!
//! The agent makes them before libcontainer does and removes them itself: a folder that exists keeps its parent alive,
//! so that creating and removing may go on side by side, and the parent goes with the last container.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// How long a cgroup whose processes were just killed may still be busy.
const BUSY: (u32, Duration) = (200, Duration::from_millis(5));

/// The mounted cgroup hierarchies of this machine.
#[derive(Clone, Debug)]
pub(super) struct Hierarchies {
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

    /// Whether Linux killed a process of this cgroup for want of memory.
    pub fn oom_killed(&self, path: &Path) -> bool {
        let file = match (&self.memory, &self.unified) {
            (Some(root), _) => below(root, path).join("memory.oom_control"),
            (None, Some(root)) => below(root, path).join("memory.events"),
            (None, None) => return false,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse::<u64>().ok())
            .unwrap_or(0)
            > 0
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

fn remove_tree(folder: &Path) -> io::Result<()> {
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
