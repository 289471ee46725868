//! The built-in layer.

use std::fs;
use std::path::{Path, PathBuf};

use super::{KRUNNER, KrunnerError, at, place};

static BUILT_IN: &[u8] = include_bytes!(env!("KRUNNER_LAYER_TAR"));

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
    /// `opt/backend.ai` is to be mounted read-only at [`MOUNT_POINT`](super::MOUNT_POINT). Any number of agents may do this at the same time:
    /// the folder appears whole or not at all. Blocking file work: call it off the async threads.
    ///
    /// # Errors
    /// [`KrunnerError::Folder`], [`KrunnerError::Contested`].
    pub fn ensure_unpacked(&self, state_dir: &Path) -> Result<PathBuf, KrunnerError> {
        place::ensure(state_dir, &self.digest, &has_runner, |folder| {
            let mut archive = tar::Archive::new(self.tar);
            archive.set_preserve_permissions(true);
            at(
                "unpack the krunner layer into",
                folder,
                archive.unpack(folder),
            )
        })
    }
}

fn has_runner(folder: &Path) -> bool {
    fs::metadata(folder.join(KRUNNER.trim_start_matches('/')))
        .is_ok_and(|meta| meta.is_file() && meta.len() > 0)
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
                assert!(has_runner(&place));
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
