//! Folders below the state folder that are made once, by whichever agent comes first, and are whole or absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{KrunnerError, at};

/// The file that says that a folder is whole; it holds the digest of what is in it.
const MARKER: &str = ".complete";

/// `<state_dir>/krunner/`.
pub(super) fn parent(state_dir: &Path) -> PathBuf {
    state_dir.join("krunner")
}

/// The folder of a digest, if it is there and whole.
pub(super) fn find(
    state_dir: &Path,
    digest: &str,
    is_good: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let place = parent(state_dir).join(hex(digest));
    let marked = fs::read_to_string(place.join(MARKER)).is_ok_and(|found| found == digest);
    (marked && is_good(&place)).then_some(place)
}

/// Makes the folder of a digest and lets it be filled, unless it is there. Any number of agents may do this at the
/// same time. `is_good` looks whether a marked folder still holds what it should.
pub(super) fn ensure(
    state_dir: &Path,
    digest: &str,
    is_good: &dyn Fn(&Path) -> bool,
    fill: impl FnOnce(&Path) -> Result<(), KrunnerError>,
) -> Result<PathBuf, KrunnerError> {
    let whole = || find(state_dir, digest, is_good);
    if let Some(place) = whole() {
        return Ok(place);
    }
    let (parent, hex) = (parent(state_dir), hex(digest));
    at("create", &parent, fs::create_dir_all(&parent))?;
    sweep(&parent);
    let beside = Beside::new(&parent, hex);
    at("create", &beside.0, fs::create_dir(&beside.0))?;
    fill(&beside.0)?;
    let marker = beside.0.join(MARKER);
    at("write", &marker, fs::write(&marker, digest))?;
    let place = parent.join(hex);
    for _ in 0..3 {
        match fs::rename(&beside.0, &place) {
            Ok(()) => return Ok(place),
            // Another agent was faster, or an older one left a damaged folder.
            Err(_) if whole().is_some() => return Ok(place),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                let damaged = Beside::new(&parent, hex);
                // Not there any more: another agent has put it aside already.
                let _absent = fs::rename(&place, &damaged.0);
            }
            Err(error) => return at("rename into place", &place, Err(error)),
        }
    }
    Err(KrunnerError::Contested(place))
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// A folder beside the final one, on the same file system; removed when dropped, if it is still there.
#[derive(Debug)]
struct Beside(PathBuf);

impl Beside {
    fn new(parent: &Path, hex: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(parent.join(format!(".{hex}.{}.{number}", std::process::id())))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Absent is the usual case: it was renamed.
        let _absent = fs::remove_dir_all(&self.0);
    }
}

/// Removes the unfinished folders of agents that were killed. What cannot be removed stays for the next time.
fn sweep(parent: &Path) {
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .filter(|name| name.starts_with('.'))
            .and_then(|name| name.rsplit('.').nth(1));
        if owner
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        {
            let _stays = fs::remove_dir_all(entry.path());
        }
    }
}
