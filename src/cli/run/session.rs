//! A run's own small node: an agent with folders of its own, and the clean-up after runs that were killed.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;

use super::{Place, RunArgs, SCRATCH, user};
use crate::agent::event::Event;
use crate::agent::request::{KernelConfig, KernelId, Reply, Request, VfolderMount};
use crate::agent::{Agent, AgentConfig};
use crate::kernel::plan::{NoNewPrivileges, PlanSettings};
use crate::manager::Node;
use crate::resource::device::{Cpu, Memory};
use crate::resource::slot::{Amount, SlotAmounts, parse_bytes};
use crate::runtime::{ImageInfo, LABEL_AGENT_ID, LABEL_KERNEL_ID};
use crate::stats::StatsCollector;
use crate::sys::cgroup::{self, Hierarchies};

/// Label that makes an image a kernel's.
pub const KERNELSPEC: &str = "ai.backend.kernelspec";
/// Host ports for runs: beside the default range of the daemon.
const PORTS: std::ops::RangeInclusive<u16> = 31_001..=32_000;
/// The file that a living run holds locked.
const LOCK: &str = "lock";

/// A run's node and kernel.
#[derive(Debug)]
pub struct Session {
    /// The node.
    pub agent: Agent,
    /// The kernel, made by [`Session::create`].
    pub kernel: KernelId,
    /// Its image.
    pub image: ImageInfo,
    config: KernelConfig,
    folder: PathBuf,
    _lock: File,
}

impl Session {
    /// Makes the node, once the image and all options are known to be right.
    ///
    /// # Errors
    /// When an option is wrong, no image fits, or a folder cannot be made.
    pub async fn open(
        place: &Place,
        args: &RunArgs,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        sweep(place).await;
        let image = find_image(place, args).await?;
        let (id, lock) = make_folder(&place.folder)
            .with_context(|| format!("cannot write to {}; run as root", place.folder.display()))?;
        let kernel = KernelId::parse(&id)?;
        let folder = place.folder.join(&id);
        let made = Self::in_folder(place, args, image, kernel, folder.clone(), lock).await;
        if made.is_err() {
            remove_folder(&folder);
        }
        made
    }

    async fn in_folder(
        place: &Place,
        args: &RunArgs,
        image: ImageInfo,
        kernel: KernelId,
        folder: PathBuf,
        lock: File,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        let config = kernel_config(args, &image, &folder)?;
        let (events, receiver) = mpsc::unbounded_channel();
        let agent = Agent::start(AgentConfig {
            plan: PlanSettings {
                agent_id: agent_id(&folder),
                kernel_uid: args.uid.unwrap_or_else(user::find),
                own_user: place.own_user,
                krunner: place.krunner.clone(),
                agent_socket: None,
                vfolder_base: folder.join("mounts"),
                vfolder_prefix: String::new(),
                jail: Vec::new(),
                runner_env: Vec::new(),
                no_new_privileges: NoNewPrivileges::default(),
            },
            kernel_host: "127.0.0.1".to_owned(),
            runner_host: "127.0.0.1".to_owned(),
            port_range: PORTS,
            scratch_root: folder.join(SCRATCH),
            scratch_in_memory: false,
            devices: vec![Box::new(Cpu::detect()?), Box::new(Memory::detect())],
            keep_containers: false,
            engine_listens: place.listens,
            runtime: Arc::clone(&place.runtime),
            images: Arc::clone(&place.images),
            connect: Arc::clone(&place.connect),
            stats: StatsCollector::default(),
            events,
        })
        .await?;
        let session = Self {
            agent,
            kernel,
            image,
            config,
            folder,
            _lock: lock,
        };
        Ok((session, receiver))
    }

    /// Creates the kernel; false when it was ended before it was ready.
    ///
    /// # Errors
    /// Whatever failed.
    pub async fn create(&self) -> anyhow::Result<bool> {
        let request = Request::CreateKernel {
            kernel: self.kernel.clone(),
            config: Box::new(self.config.clone()),
        };
        Ok(matches!(
            self.agent.handle(request).await?,
            Reply::Created(_)
        ))
    }

    /// Copies a file into the kernel's work folder; gives its name there.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn upload(&self, file: &Path) -> anyhow::Result<String> {
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no plain file name", file.display()))?;
        let data = tokio::fs::read(file)
            .await
            .with_context(|| format!("cannot read {}", file.display()))?;
        let request = Request::UploadFile {
            kernel: self.kernel.clone(),
            filename: name.to_owned(),
            data: data.into(),
        };
        self.agent.handle(request).await?;
        Ok(name.to_owned())
    }

    /// Whether Linux killed a program of the kernel for want of memory.
    pub async fn ran_out_of_memory(&self) -> bool {
        let runtime = &self.agent.parts().runtime;
        let containers = runtime.list().await.unwrap_or_default();
        let cgroup = containers.into_iter().find_map(|container| {
            let kernel = container.labels.get(LABEL_KERNEL_ID)?;
            container.cgroup.filter(|_| kernel == self.kernel.as_str())
        });
        let count = |path: PathBuf| Hierarchies::detect(Path::new(cgroup::ROOT)).oom_kills(&path);
        cgroup.and_then(count).is_some_and(|kills| kills > 0)
    }

    /// Ends the kernel if it lives, and removes every file of the run.
    pub async fn close(self) {
        self.agent.shutdown(true).await;
        remove_folder(&self.folder);
    }
}

/// The agent's id of a run: containers carry it, so that what a killed run left can be found.
fn agent_id(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default();
    format!("run-{}", name.to_string_lossy())
}

async fn find_image(place: &Place, args: &RunArgs) -> anyhow::Result<ImageInfo> {
    if let Some(name) = &args.image {
        let image = place.images.inspect(name).await;
        return image.with_context(|| {
            format!("cannot use {name}; `backendai-agent image import` and `image pull` add images")
        });
    }
    let images = place.images.list().await?;
    let mut kernels = images
        .into_iter()
        .filter(|it| it.labels.contains_key(KERNELSPEC));
    kernels.next().context(
        "no kernel image is in the store; add one with `backendai-agent image import FILE NAME \
         --label ai.backend.kernelspec=1`, or name any image with --image",
    )
}

fn kernel_config(args: &RunArgs, image: &ImageInfo, folder: &Path) -> anyhow::Result<KernelConfig> {
    let mut slots = SlotAmounts::default();
    slots.insert("cpu".to_owned(), Amount::parse(&args.cpu).context("--cpu")?);
    let bytes = parse_bytes(&args.mem).context("--mem")?;
    slots.insert("mem".to_owned(), rust_decimal::Decimal::from(bytes));
    let environ = args.env.iter().map(|text| {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.with_context(|| format!("--env {text:?} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    let mounts = args.mount.iter().enumerate();
    let mounts = mounts.map(|(index, text)| mount(text, index, folder));
    Ok(KernelConfig {
        image: args
            .image
            .clone()
            .or_else(|| image.names.first().cloned())
            .unwrap_or_else(|| image.id.clone()),
        digest: image.id.clone(),
        labels: image.labels.clone(),
        slots,
        environ: environ.collect::<anyhow::Result<_>>()?,
        mounts: mounts.collect::<anyhow::Result<_>>()?,
        ..KernelConfig::default()
    })
}

/// Makes `FOLDER:NAME[:ro]` a virtual folder: those have names only, so a link leads to the folder.
fn mount(text: &str, index: usize, folder: &Path) -> anyhow::Result<VfolderMount> {
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    let parts = rest.rsplit_once(':').filter(|(_, name)| !name.is_empty());
    let (host, name) =
        parts.with_context(|| format!("--mount {text:?} is not FOLDER:NAME[:ro]"))?;
    let target = fs::canonicalize(host).with_context(|| format!("cannot mount {host}"))?;
    let id = index.to_string();
    symlink(target, folder.join("mounts").join("local").join(&id))
        .with_context(|| format!("cannot mount {host}"))?;
    Ok(VfolderMount {
        name: name.to_owned(),
        host: "local".to_owned(),
        id,
        read_only,
    })
}

/// Makes the folder of a run among those of others: its name, which is new, and its lock.
fn make_folder(runs: &Path) -> io::Result<(String, File)> {
    loop {
        let id = uuid::Uuid::new_v4().to_string();
        let folder = runs.join(&id);
        fs::create_dir_all(&folder)?;
        match fill_folder(&folder) {
            Ok(lock) => return Ok((id, lock)),
            // Another run's `sweep` came before the lock.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
}

fn fill_folder(folder: &Path) -> io::Result<File> {
    let lock = File::create(folder.join(LOCK))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    fs::create_dir(folder.join(SCRATCH))?;
    fs::create_dir_all(folder.join("mounts").join("local"))?;
    Ok(lock)
}

fn remove_folder(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!("cannot remove {}: {error}", folder.display());
    }
}

/// Removes what runs left that were killed: their folders are there, but nobody holds the lock.
async fn sweep(place: &Place) {
    let Ok(folders) = fs::read_dir(&place.folder) else {
        return;
    };
    for folder in folders.flatten().map(|entry| entry.path()) {
        if let Some(_lock) = lock_left(&folder) {
            remove_containers(place, &agent_id(&folder)).await;
            remove_folder(&folder);
        }
    }
}

/// The lock of a run's folder whose run has ended.
fn lock_left(folder: &Path) -> Option<File> {
    let lock = File::open(folder.join(LOCK)).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}

async fn remove_containers(place: &Place, agent: &str) {
    for info in place.runtime.list().await.unwrap_or_default() {
        let theirs = info.labels.get(LABEL_AGENT_ID);
        if theirs.is_some_and(|it| it == agent)
            && let Err(error) = place.runtime.remove(&info.id).await
        {
            tracing::warn!(container = %info.id, "{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Another run looks for what killed runs left at the moment between a new folder and its lock.
    #[test]
    fn a_run_that_begins_is_not_disturbed_by_one_that_sweeps() {
        let runs = tempfile::tempdir().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for entry in fs::read_dir(runs.path()).unwrap().flatten() {
                        if let Some(_lock) = lock_left(&entry.path()) {
                            remove_folder(&entry.path());
                        }
                    }
                }
            });
            let made: io::Result<Vec<_>> = (0..300).map(|_| make_folder(runs.path())).collect();
            done.store(true, Ordering::Relaxed);
            for (id, _lock) in made.unwrap() {
                assert!(runs.path().join(&id).join(SCRATCH).is_dir(), "{id}");
            }
        });
    }
}
