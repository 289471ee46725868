//! `exec`: a second program in a living container, started by a helper process of its own.
//!
//! libcontainer 0.7 refuses to enter a container that has a system-call filter, so the helper does it: cgroups,
//! namespaces, user, capabilities and filter of the first process, in one single-threaded process that then starts the
//! program. Its standard input is a socket: the request comes in there, and when it is closed the program is killed.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Gid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::monitor::go_to;
use super::record::Init;
use super::{Inner, NAME, Youki};
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::output::{self, gather, too_long};
use crate::runtime::{
    BoxError, ContainerId, ExecOutput, ExecSpec, Result, RuntimeError, chain, check,
};

/// What the helper is asked to run.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    init: Init,
    cgroup: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    user: (u32, u32),
    capabilities: LinuxCapabilities,
    no_new_privileges: bool,
    seccomp: Option<LinuxSeccomp>,
}

/// How the helper ends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Code(i32),
    Invalid(String),
    Failed(String),
}

type BoxResult<T> = Result<T, Box<dyn std::error::Error>>;

impl Youki {
    pub(super) async fn exec_in(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        let action = output::action(id, spec);
        let (asked, wanted) = (id.clone(), spec.clone());
        let request = self
            .blocking(action.clone(), move |inner| {
                inner.exec_request(&asked, wanted)
            })
            .await?;
        match tokio::time::timeout(spec.time_limit, self.run_helper(&request)).await {
            Ok(Ok((Outcome::Code(code), stdout, stderr))) => Ok(ExecOutput {
                code,
                stdout,
                stderr,
            }),
            Ok(Ok((Outcome::Invalid(text), ..))) => {
                Err(RuntimeError::Invalid(format!("{action}: {text}")))
            }
            Ok(Ok((Outcome::Failed(text), ..))) => Err(RuntimeError::engine(NAME, action, text)),
            Ok(Err(error)) => Err(RuntimeError::engine(NAME, action, error)),
            Err(_) => Err(too_long(NAME, action, spec)),
        }
    }

    /// Dropping this ends the program: the helper sees its socket closed.
    async fn run_helper(&self, request: &[u8]) -> io::Result<(Outcome, Vec<u8>, Vec<u8>)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut ours = tokio::net::UnixStream::from_std(ours)?;
        let mut helper = tokio::process::Command::new(self.0.program.path())
            .arg("__exec")
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let length = u64::try_from(request.len()).unwrap_or(u64::MAX);
        ours.write_all(&length.to_le_bytes()).await?;
        ours.write_all(request).await?;
        let mut answer = Vec::new();
        let streams = (helper.stdout.take(), helper.stderr.take());
        let (Some(stdout), Some(stderr)) = streams else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let (done, stdout, stderr) = gather(stdout, stderr, ours.read_to_end(&mut answer)).await;
        done?;
        helper.wait().await?;
        let outcome = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| Outcome::Failed("the helper died".to_owned()));
        Ok((outcome, stdout, stderr))
    }
}

impl Inner {
    fn exec_request(&self, id: &ContainerId, spec: ExecSpec) -> Result<Vec<u8>, BoxError> {
        check::exec(&self.inspect(id)?, &spec)?;
        let (folder, kept, init) = self.known(id)?;
        let oci: Spec = serde_json::from_slice(&fs::read(folder.file("config.json"))?)?;
        let process = oci.process().as_ref().ok_or("config.json has no process")?;
        let base = process.env().clone().unwrap_or_default();
        let request = Request {
            init,
            cgroup: kept.record.cgroup,
            env: crate::runtime::oci::environment(&base, &spec.env),
            args: spec.args,
            cwd: spec.cwd,
            user: spec.user,
            capabilities: process.capabilities().clone().unwrap_or_default(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp: oci
                .linux()
                .as_ref()
                .and_then(|linux| linux.seccomp().clone()),
        };
        Ok(serde_json::to_vec(&request)?)
    }
}

/// Runs the helper: one request from standard input, one outcome to it.
pub(super) fn exec_main() -> ExitCode {
    let Ok(socket) = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
    else {
        return ExitCode::FAILURE;
    };
    let outcome = run(&socket).unwrap_or_else(|error| Outcome::Failed(chain(&*error)));
    let text = serde_json::to_vec(&outcome).unwrap_or_default();
    match (&socket).write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(socket: &UnixStream) -> BoxResult<Outcome> {
    let request = read_request(socket)?;
    // Before the filter: what is opened later would have to be allowed by it.
    let null = fs::File::open("/dev/null")?;
    nix::unistd::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0)?;
    enter(&request)?;
    if let Err(error) = go_to(&request.cwd) {
        return Ok(Outcome::Invalid(format!(
            "working folder {}: {error}",
            request.cwd.display()
        )));
    }
    give_up_privileges(&request)?;
    let variables: HashMap<_, _> = request
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .collect();
    let program = Command::new(&request.args[0])
        .args(&request.args[1..])
        .env_clear()
        .envs(variables)
        .spawn();
    match program {
        Ok(child) => Ok(Outcome::Code(wait_or_kill(child, socket)?)),
        Err(error) => Ok(Outcome::Invalid(error.to_string())),
    }
}

fn read_request(mut socket: &UnixStream) -> BoxResult<Request> {
    let mut length = [0; 8];
    socket.read_exact(&mut length)?;
    let mut text = Vec::new();
    socket
        .take(u64::from_le_bytes(length))
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Joins the container's cgroups and namespaces; the pid namespace holds for children only.
fn enter(request: &Request) -> BoxResult<()> {
    let init = request.init.process()?.ok_or("the container has ended")?;
    Hierarchies::read()?.join(&request.cgroup)?;
    let kinds = ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    Ok(move_into_thread_name_spaces(init.as_fd(), kinds)?)
}

fn give_up_privileges(request: &Request) -> BoxResult<()> {
    let (uid, gid) = request.user;
    let filter = || -> BoxResult<()> {
        if let Some(profile) = &request.seccomp {
            initialize_seccomp(profile)?;
        }
        Ok(())
    };
    if !request.no_new_privileges {
        // Loading a filter is a privilege then.
        filter()?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    let mut capabilities = request.capabilities.clone();
    if !uid.is_root() {
        for set in [
            LinuxCapabilities::set_effective,
            LinuxCapabilities::set_permitted,
        ] {
            set(&mut capabilities, None);
        }
    }
    drop_privileges(&capabilities, &*create_syscall())?;
    set_thread_res_uid(uid, uid, uid)?;
    if request.no_new_privileges {
        set_no_new_privs(true)?;
        filter()?;
    }
    Ok(())
}

/// Waits for the program; kills it when nobody waits for its outcome any more.
fn wait_or_kill(mut child: Child, socket: &UnixStream) -> BoxResult<i32> {
    let pid = i32::try_from(child.id())?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or("pid 0")?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [
            PollFd::new(&ended, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut fds, None))?;
        if !fds[0].revents().is_empty() {
            break;
        }
        if !fds[1].revents().is_empty() {
            child.kill()?;
            break;
        }
    }
    let status = child.wait()?;
    Ok(status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(255))
}
