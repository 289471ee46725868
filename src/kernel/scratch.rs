//! A kernel's folders on the host: configuration and work files (19.03 agent, `server.py`, scratch handling).
//!
//! `{root}/{kernel}/config/{environ,resource}.txt`, `{root}/{kernel}/work/.jupyter/`, and in memory mode also
//! `{root}/{kernel}_tmp/`, both folders then being tmpfs of 64 MiB.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::agent::AgentError;
use crate::agent::request::KernelId;

/// Mount options of scratch folders in memory (19.03: 64 MiB).
const MEMORY_OPTIONS: &std::ffi::CStr = c"size=64M";

/// The folder that holds every kernel's scratch folders.
#[derive(Clone, Debug)]
pub struct ScratchRoot {
    root: PathBuf,
    in_memory: bool,
}

/// One kernel's folders. Dropping it keeps them: a kernel outlives the agent.
#[derive(Clone, Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// The folder mounted at `/tmp`, in memory mode.
    tmp: Option<PathBuf>,
}

/// New folders that are removed again unless [`ScratchLease::keep`] is called.
#[derive(Debug)]
pub struct ScratchLease(Option<Scratch>);

impl ScratchRoot {
    /// Folders below `root`, which must exist; on tmpfs when `in_memory`.
    #[must_use]
    pub fn new(root: PathBuf, in_memory: bool) -> Self {
        Self { root, in_memory }
    }

    /// Makes the folders of a new kernel; `work` belongs to `owner` where one is given.
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path; nothing is left behind then.
    pub async fn create(
        &self,
        kernel: &KernelId,
        owner: Option<u32>,
    ) -> Result<ScratchLease, AgentError> {
        let scratch = self.paths(kernel, self.in_memory);
        blocking(move || {
            // A folder that is there already belongs to another kernel: the lease begins after this.
            let folder = &scratch.folder;
            fs::create_dir(folder).map_err(host("cannot make scratch folder", folder))?;
            let lease = ScratchLease(Some(scratch.clone()));
            scratch.fill(owner)?;
            Ok(lease)
        })
        .await
    }

    /// The folders of a kernel that was there before; `None` without them.
    #[must_use]
    pub fn open(&self, kernel: &KernelId) -> Option<Scratch> {
        let in_memory = self.root.join(format!("{kernel}_tmp")).is_dir();
        let scratch = self.paths(kernel, in_memory);
        scratch.config().is_dir().then_some(scratch)
    }

    /// The kernels that have folders here, in the order of names.
    ///
    /// # Errors
    /// [`AgentError::Host`] when the root cannot be read.
    pub fn kernels(&self) -> Result<Vec<KernelId>, AgentError> {
        let entries = fs::read_dir(&self.root).map_err(host("cannot list", &self.root))?;
        let mut kernels: Vec<KernelId> = entries
            .filter_map(|entry| KernelId::parse(entry.ok()?.file_name().to_str()?).ok())
            .filter(|kernel| self.open(kernel).is_some())
            .collect();
        kernels.sort();
        Ok(kernels)
    }

    fn paths(&self, kernel: &KernelId, in_memory: bool) -> Scratch {
        Scratch {
            folder: self.root.join(kernel.as_str()),
            tmp: in_memory.then(|| self.root.join(format!("{kernel}_tmp"))),
        }
    }
}

impl Scratch {
    /// Shown read-only at `/home/config`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// Shown at `/home/work`.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Shown at `/tmp`, in memory mode.
    #[must_use]
    pub fn tmp(&self) -> Option<&Path> {
        self.tmp.as_deref()
    }

    /// Writes `environ.txt`: a line `KEY=value` each. Line breaks inside a value would read as further variables, so
    /// they become spaces (19.03 corrupts the file).
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path.
    pub async fn write_environ(&self, environ: &[(String, String)]) -> Result<(), AgentError> {
        let flat = |value: &str| value.replace(['\n', '\r'], " ");
        let text: String = environ
            .iter()
            .map(|(key, value)| format!("{key}={}\n", flat(value)))
            .collect();
        self.write("environ.txt", text).await
    }

    /// Writes `resource.txt`.
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path.
    pub async fn write_resource(&self, text: String) -> Result<(), AgentError> {
        self.write("resource.txt", text).await
    }

    /// Reads `resource.txt`.
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path.
    pub async fn read_resource(&self) -> Result<String, AgentError> {
        self.read("resource.txt").await
    }

    /// Reads `environ.txt` back.
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path.
    pub async fn read_environ(&self) -> Result<Vec<(String, String)>, AgentError> {
        let text = self.read("environ.txt").await?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect())
    }

    /// Removes the files of a kernel that has ended, ahead of [`Self::remove`], which tries again what fails here and
    /// tells it. The configuration stays.
    pub async fn empty_work(&self) {
        let work = self.work();
        let emptied = blocking(move || {
            fs::remove_dir_all(&work).map_err(host("cannot remove scratch folder", &work))
        });
        if let Err(error) = emptied.await {
            tracing::debug!("{error}");
        }
    }

    /// Removes the folders and what is mounted on them; what is not there is no error.
    ///
    /// # Errors
    /// [`AgentError::Host`] with the path that could not be removed; the other folder is still tried.
    pub async fn remove(self) -> Result<(), AgentError> {
        blocking(move || self.remove_now()).await
    }

    fn folders(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.folder.as_path()).chain(self.tmp.as_deref())
    }

    fn fill(&self, owner: Option<u32>) -> Result<(), AgentError> {
        if let Some(tmp) = &self.tmp {
            fs::create_dir(tmp).map_err(host("cannot make scratch folder", tmp))?;
            for folder in self.folders() {
                mount(
                    "tmpfs",
                    folder,
                    "tmpfs",
                    MountFlags::NOSUID | MountFlags::NODEV,
                    MEMORY_OPTIONS,
                )
                .map_err(|error| host("cannot mount tmpfs on", folder)(error.into()))?;
            }
        }
        if let Some(tmp) = &self.tmp {
            let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
            fs::set_permissions(tmp, sticky).map_err(host("cannot set the mode of", tmp))?;
        }
        let jupyter = self.work().join(".jupyter");
        for folder in [&self.config(), &jupyter] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(host("cannot make scratch folder", folder))?;
        }
        match owner {
            // Only this folder, not what is in it (19.03).
            Some(uid) => chown(self.work(), Some(uid), Some(uid))
                .map_err(host("cannot change the owner of", &self.work())),
            None => Ok(()),
        }
    }

    async fn write(&self, name: &str, text: String) -> Result<(), AgentError> {
        let path = self.config().join(name);
        blocking(move || {
            // The runner may be reading: the new text takes the old one's place at once.
            let new = path.with_extension("new");
            fs::write(&new, text)
                .and_then(|()| fs::rename(&new, &path))
                .map_err(host("cannot write", &path))
        })
        .await
    }

    async fn read(&self, name: &str) -> Result<String, AgentError> {
        let path = self.config().join(name);
        blocking(move || fs::read_to_string(&path).map_err(host("cannot read", &path))).await
    }

    fn remove_now(&self) -> Result<(), AgentError> {
        let mut outcome = Ok(());
        for folder in self.folders() {
            if self.tmp.is_some() {
                // Not mounted is what we want.
                let _ = unmount(folder, UnmountFlags::DETACH);
            }
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    outcome = Err(host("cannot remove scratch folder", folder)(error));
                }
                _ => {}
            }
        }
        outcome
    }
}

impl ScratchLease {
    /// The folders.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        self.0
            .as_ref()
            .expect("taken only by keep, which consumes the lease")
    }

    /// Keeps the folders.
    #[must_use]
    pub fn keep(mut self) -> Scratch {
        self.0
            .take()
            .expect("taken only here, and this consumes the lease")
    }
}

impl Drop for ScratchLease {
    fn drop(&mut self) {
        if let Some(scratch) = self.0.take()
            && let Err(error) = scratch.remove_now()
        {
            tracing::warn!("{error}");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file work does not panic and is not aborted")
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError + use<> {
    let action = format!("{action} {}", path.display());
    move |source| AgentError::Host { action, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn kernel() -> KernelId {
        KernelId::parse("11111111-2222-3333-4444-555555555555").expect("a valid id")
    }

    #[tokio::test]
    async fn the_folders_are_those_of_the_original_and_go_away_whole() {
        let root = tempfile::tempdir().expect("a folder");
        let all = ScratchRoot::new(root.path().into(), false);
        let scratch = all
            .create(&kernel(), Some(1234))
            .await
            .expect("made")
            .keep();
        assert_eq!(fs::metadata(scratch.work()).expect("there").uid(), 1234);
        assert_ne!(
            fs::metadata(scratch.work().join(".jupyter"))
                .expect("there")
                .uid(),
            1234
        );
        assert_eq!(all.kernels().expect("listed"), [kernel()]);
        scratch.remove().await.expect("removed");
        assert!(all.open(&kernel()).is_none());
        assert_eq!(fs::read_dir(root.path()).expect("there").count(), 0);
    }

    #[tokio::test]
    async fn a_dropped_lease_leaves_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        let all = ScratchRoot::new(root.path().into(), false);
        drop(all.create(&kernel(), None).await.expect("made"));
        assert_eq!(fs::read_dir(root.path()).expect("there").count(), 0);
        assert!(
            ScratchRoot::new(root.path().join("no"), false)
                .create(&kernel(), None)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn variables_are_lines_and_line_breaks_do_not_make_more() {
        let root = tempfile::tempdir().expect("a folder");
        let lease = ScratchRoot::new(root.path().into(), false)
            .create(&kernel(), None)
            .await
            .expect("made");
        let environ = [
            ("A".to_owned(), "1\nB=2".to_owned()),
            ("C".to_owned(), "x=y".to_owned()),
        ];
        lease
            .scratch()
            .write_environ(&environ)
            .await
            .expect("written");
        let path = lease.scratch().config().join("environ.txt");
        assert_eq!(fs::read_to_string(path).expect("there"), "A=1 B=2\nC=x=y\n");
        let back = lease.scratch().read_environ().await.expect("read");
        assert_eq!(back[1], environ[1]);
    }

    #[tokio::test]
    async fn folders_in_memory_are_mounts_that_go_away_with_the_kernel() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to mount tmpfs");
            return;
        }
        let root = tempfile::tempdir().expect("a folder");
        let all = ScratchRoot::new(root.path().into(), true);
        let mounts = || {
            let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
            let text = root.path().to_str().expect("text");
            table.lines().filter(|line| line.contains(text)).count()
        };
        let lease = all.create(&kernel(), None).await.expect("made");
        assert_eq!(mounts(), 2);
        let tmp = lease.scratch().tmp().expect("a folder for /tmp");
        assert_eq!(fs::metadata(tmp).expect("there").mode() & 0o7777, 0o1777);
        drop(lease.keep());
        let scratch = all.open(&kernel()).expect("a later agent finds it");
        scratch.remove().await.expect("removed");
        assert_eq!(mounts(), 0);
        assert_eq!(fs::read_dir(root.path()).expect("there").count(), 0);
    }

    #[tokio::test]
    async fn a_second_kernel_of_the_same_id_does_not_take_the_firsts_folders_away() {
        let root = tempfile::tempdir().expect("a folder");
        let all = ScratchRoot::new(root.path().into(), false);
        let _first = all.create(&kernel(), None).await.expect("made");
        assert!(all.create(&kernel(), None).await.is_err());
        assert!(all.open(&kernel()).is_some());
    }
}
