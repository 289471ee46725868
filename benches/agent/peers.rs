//! Other ways to start a container of the same root file system, measured in turn with ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::{WaitStatus, waitpid};
use serde_json::{Value, json};

use super::engines::{AT_ONCE, Beside};
use super::report::Series;

/// First argument of the helper process.
pub const HELPER: &str = "__libcontainer";

/// The peers that work on this machine.
pub struct Peers {
    bundle: PathBuf,
    state: PathBuf,
    programs: Vec<&'static str>,
}

impl Peers {
    /// Unpacks the root file system, writes a bundle, and leaves out what is not installed or fails here.
    pub fn prepare(folder: &Path) -> Result<Self> {
        let bundle = folder.join("peer");
        let state = folder.join("peer-state");
        let rootfs = bundle.join("rootfs");
        std::fs::create_dir_all(&rootfs)?;
        std::fs::create_dir_all(&state)?;
        let image = std::env::var("BACKENDAI_BENCH_IMAGE")?;
        ensure!(
            quiet(
                Command::new("tar")
                    .arg("-xf")
                    .arg(image)
                    .arg("-C")
                    .arg(&rootfs)
            )?,
            "tar failed"
        );
        let output = Command::new("runc")
            .args(["spec", "--bundle"])
            .arg(&bundle)
            .output();
        ensure!(
            output.is_ok_and(|output| output.status.success()),
            "runc spec failed; install runc"
        );
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["true"]);
        spec["process"]["rlimits"] = json!([]);
        std::fs::write(&path, spec.to_string())?;
        let mut peers = Self {
            bundle,
            state,
            programs: Vec::new(),
        };
        for program in ["libcontainer", "crun", "runc", "youki"] {
            match peers.once(program, 0) {
                Ok(()) => peers.programs.push(program),
                Err(error) => eprintln!("peer {program} is left out: {error:#}"),
            }
        }
        Ok(peers)
    }

    fn once(&self, program: &str, n: usize) -> Result<()> {
        let id = format!("bench-peer-{n}");
        let mut command = if program == "libcontainer" {
            let mut command = Command::new("/proc/self/exe");
            command
                .args([HELPER, &id])
                .arg(&self.state)
                .arg(&self.bundle);
            command
        } else {
            let mut command = Command::new(program);
            command
                .arg("--root")
                .arg(&self.state)
                .args(["run", "--bundle"])
                .arg(&self.bundle)
                .arg(&id);
            command
        };
        ensure!(quiet(&mut command)?, "{program} failed");
        Ok(())
    }
}

impl Beside for Peers {
    fn round(&self, create: &mut Series, _: &mut Series) -> Result<()> {
        for program in &self.programs {
            let begin = Instant::now();
            self.once(program, 0)?;
            create.push_peer(program, begin.elapsed());
        }
        Ok(())
    }

    fn at_once(&self, many: &mut Series) -> Result<()> {
        for program in &self.programs {
            many.push_peers(program, at_once(|n| self.once(program, n))?);
        }
        Ok(())
    }
}

/// The helper process: one container by libcontainer, from create to delete.
pub fn helper_main(args: &[String]) -> Result<()> {
    let [id, state, bundle] = args else {
        bail!("usage: {HELPER} ID STATE BUNDLE")
    };
    let null = || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
    };
    let mut container = ContainerBuilder::new(id.clone(), SyscallType::Linux)
        .with_root_path(state)?
        .validate_id()?
        .with_stdin(null()?)
        .with_stdout(null()?)
        .with_stderr(null()?)
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    let pid = container.pid().context("no pid")?;
    container.start()?;
    let status = waitpid(nix::unistd::Pid::from_raw(pid.as_raw()), None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    container.delete(true)?;
    Ok(())
}

/// Does the same [`AT_ONCE`] times at once; gives the time that each took.
pub fn at_once(work: impl Fn(usize) -> Result<()> + Sync) -> Result<Vec<Duration>> {
    let timed = |n| {
        let begin = Instant::now();
        work(n).map(|()| begin.elapsed())
    };
    let timed = &timed;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|n| scope.spawn(move || timed(n)))
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .map(|ended| ended.unwrap_or_else(|_| bail!("a peer's thread panicked")))
            .collect()
    })
}

fn quiet(command: &mut Command) -> Result<bool> {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command
        .status()
        .with_context(|| format!("{command:?}"))?
        .success())
}
