//! The krunner layer: the static runner that works inside kernels, carried in this binary and unpacked once for each node.
//!
//! Every kernel gets the unpacked folder mounted read-only at `/opt/backend.ai`; nothing is copied for a kernel.
//! `build.rs` makes the layer; `krunner-env/` has the sources.

mod export;

pub use self::export::{DIGEST_LABEL, Exported, VERSION_LABEL, export};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// Where kernels find the runner.
pub const MOUNT_POINT: &str = "/opt/backend.ai";
/// The runner in a kernel.
pub const KRUNNER: &str = "/opt/backend.ai/bin/krunner";

/// The file that says that an unpacked layer is whole; it holds the digest.
const MARKER: &str = ".complete";

static BUILT_IN: &[u8] = include_bytes!(env!("KRUNNER_LAYER_TAR"));

/// Why the layer is not there.
#[derive(Debug, Error)]
pub enum KrunnerError {
    /// The state directory cannot be used: permissions, space.
    #[error("cannot {action} {path}: check the state directory's permissions and space")]
    Folder {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What Linux says.
        source: io::Error,
    },
    /// Another agent or a person keeps changing the folder.
    #[error(
        "{0} is not a whole krunner layer and comes back after each removal: stop what writes there"
    )]
    Contested(PathBuf),
}

/// An OCI layer with the runner.
#[derive(Debug, Clone)]
pub struct KrunnerLayer {
    /// `sha256:` and the hexadecimal digest of the tar.
    pub digest: String,
    tar: &'static [u8],
}

impl KrunnerLayer {
    /// The layer that this binary was built with.
    pub fn built_in() -> Self {
        Self {
            digest: env!("KRUNNER_LAYER_DIGEST").to_owned(),
            tar: BUILT_IN,
        }
    }

    /// The layer as a plain tar.
    pub fn tar(&self) -> &'static [u8] {
        self.tar
    }

    /// Unpacks the layer into `<state_dir>/krunner/<digest>/` unless it is there already, and returns that folder; its
    /// `opt/backend.ai` is to be mounted read-only at [`MOUNT_POINT`]. Any number of agents may do this at the same time:
    /// the folder appears whole or not at all. Blocking file work: call it off the async threads.
    ///
    /// # Errors
    /// [`KrunnerError::Folder`], [`KrunnerError::Contested`].
    pub fn ensure_unpacked(&self, state_dir: &Path) -> Result<PathBuf, KrunnerError> {
        let parent = state_dir.join("krunner");
        let hex = self.digest.trim_start_matches("sha256:");
        let place = parent.join(hex);
        if self.is_whole(&place) {
            return Ok(place);
        }
        at("create", &parent, fs::create_dir_all(&parent))?;
        sweep(&parent);
        let beside = Beside::new(&parent, hex);
        self.unpack(&beside.0)?;
        for _ in 0..3 {
            match fs::rename(&beside.0, &place) {
                Ok(()) => return Ok(place),
                // Another agent was faster, or an older one left a damaged folder.
                Err(_) if self.is_whole(&place) => return Ok(place),
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

    /// Whether a folder has this layer's marker and its runner.
    fn is_whole(&self, place: &Path) -> bool {
        let marked =
            fs::read_to_string(place.join(MARKER)).is_ok_and(|digest| digest == self.digest);
        marked
            && place
                .join(KRUNNER.trim_start_matches('/'))
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.len() > 0)
    }

    fn unpack(&self, folder: &Path) -> Result<(), KrunnerError> {
        at("create", folder, fs::create_dir(folder))?;
        let mut archive = tar::Archive::new(self.tar);
        archive.set_preserve_permissions(true);
        at(
            "unpack the krunner layer into",
            folder,
            archive.unpack(folder),
        )?;
        let marker = folder.join(MARKER);
        at("write", &marker, fs::write(&marker, &self.digest))
    }
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

fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, KrunnerError> {
    result.map_err(|source| KrunnerError::Folder {
        action,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sha2::{Digest, Sha256};

    use super::*;

    fn only_entry(state: &Path) -> PathBuf {
        let entries: Vec<_> = state
            .join("krunner")
            .read_dir()
            .expect("a folder")
            .flatten()
            .collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0].path()
    }

    #[test]
    fn the_digest_is_that_of_the_tar() {
        let layer = KrunnerLayer::built_in();
        assert_eq!(
            layer.digest,
            format!("sha256:{}", hex::encode(Sha256::digest(layer.tar())))
        );
    }

    #[test]
    fn the_layer_has_the_runner_and_every_mount_point() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let root = KrunnerLayer::built_in()
            .ensure_unpacked(state.path())
            .expect("it can be written to");
        let base = root.join("opt/backend.ai");
        let krunner = base.join("bin/krunner").metadata().expect("the runner");
        assert_eq!(krunner.permissions().mode() & 0o777, 0o755);
        assert_eq!(
            fs::read_link(base.join("bin/python")).expect("a link"),
            Path::new("krunner")
        );
        for file in ["agent.sock", "bin/entrypoint.sh", "bin/su-exec", "bin/jail"] {
            assert_eq!(base.join(file).metadata().expect(file).len(), 0);
        }
        for folder in [
            "hook",
            "lib/python3.6/site-packages/ai/backend/kernel",
            "lib/python3.6/site-packages/ai/backend/helpers",
        ] {
            assert!(base.join(folder).is_dir(), "{folder}");
        }
    }

    #[test]
    fn the_runner_in_the_layer_runs() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let root = KrunnerLayer::built_in()
            .ensure_unpacked(state.path())
            .expect("it can be written to");
        let output = std::process::Command::new(root.join("opt/backend.ai/bin/krunner"))
            .arg("--help")
            .output()
            .expect("it starts");
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("usage: krunner"));
    }

    #[test]
    fn a_second_agent_uses_what_is_there() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let layer = KrunnerLayer::built_in();
        let first = layer
            .ensure_unpacked(state.path())
            .expect("it can be written to");
        fs::write(first.join("trace"), "").expect("a file");
        assert_eq!(
            layer.ensure_unpacked(state.path()).expect("it is there"),
            first
        );
        assert!(first.join("trace").exists());
    }

    #[test]
    fn a_damaged_folder_is_replaced_and_unfinished_ones_of_the_dead_are_swept() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let layer = KrunnerLayer::built_in();
        let place = layer
            .ensure_unpacked(state.path())
            .expect("it can be written to");
        fs::remove_file(place.join("opt/backend.ai/bin/krunner")).expect("it is there");
        fs::create_dir(state.path().join("krunner/.abc.4294967295.0")).expect("a folder");
        assert_eq!(
            layer
                .ensure_unpacked(state.path())
                .expect("it can be replaced"),
            place
        );
        assert!(place.join("opt/backend.ai/bin/krunner").is_file());
        assert_eq!(only_entry(state.path()), place);
    }

    #[test]
    fn agents_that_start_together_get_one_whole_folder() {
        let state = tempfile::tempdir().expect("a temporary folder");
        std::thread::scope(|scope| {
            let agents: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| KrunnerLayer::built_in().ensure_unpacked(state.path())))
                .collect();
            for agent in agents {
                let place = agent
                    .join()
                    .expect("no panic")
                    .expect("it can be written to");
                assert!(KrunnerLayer::built_in().is_whole(&place));
            }
        });
        only_entry(state.path());
    }

    #[test]
    fn a_state_directory_that_is_a_file_is_named() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let file = state.path().join("file");
        fs::write(&file, "").expect("a file");
        let error = KrunnerLayer::built_in()
            .ensure_unpacked(&file)
            .expect_err("a file is not a folder");
        assert!(error.to_string().contains("file/krunner"), "{error}");
    }
}
