//! What the engine in memory does for its callers.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::images::is_called;
use super::log::{Follower, Log};
use super::{Call, Container, FIRST_PID, FakeRuntime, Program, State, Verb};
use crate::runtime::oci::{self, Placement};
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ContainerState, ExecOutput,
    ExecSpec, ExitStatus, Limits, LogPart, Result, RuntimeError, RuntimeInfo, check, log, output,
};

/// Number of processors of the fake's machine.
const CPUS: u32 = 1024;
/// Periods of CPU time that Linux takes, in microseconds.
const PERIODS: RangeInclusive<u64> = 1000..=1_000_000;
/// The shortest CPU time per period that Linux takes, in microseconds.
const SHORTEST_QUOTA: i64 = 1000;

fn invalid(text: impl Into<String>) -> RuntimeError {
    RuntimeError::Invalid(text.into())
}

fn unknown(id: &ContainerId) -> RuntimeError {
    RuntimeError::NotFound(id.clone())
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo> {
        Ok(RuntimeInfo {
            name: "fake",
            version: "1".to_owned(),
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.injected(Verb::Create).await?;
        check::request(spec)?;
        check::sources(spec)?;
        let mut state = self.state();
        let env = state.environment(spec)?;
        checked(spec, env)?;
        state.check_taken(spec)?;
        let container = Container {
            spec: spec.clone(),
            state: ContainerState::Created,
            pid: None,
            exit: None,
            log: Arc::new(Mutex::new(Log::new(spec.log_limit))),
            program: None,
        };
        state.containers.insert(spec.id.clone(), container);
        Ok(spec.id.clone())
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.injected(Verb::Start).await?;
        let (spec, call) = self.state().begin(id)?;
        let program = self.0.programs.start(self, &spec, call).await;
        let mut state = self.state();
        state.started += 1;
        let number = FIRST_PID + state.started;
        let container = state.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        if container.exit.is_some() {
            // It has ended already.
            return program.map(drop);
        }
        match program {
            Ok(program) => {
                container.pid = Some(program.pid().unwrap_or(number));
                container.program = Some(program);
                Ok(())
            }
            Err(error) => {
                container.state = ContainerState::Created;
                Err(error)
            }
        }
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.injected(Verb::Wait).await?;
        self.ended(id).await
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.injected(Verb::Kill).await?;
        let program = self.state().known(id)?.program.clone();
        if Signal::from_named_raw(signal).is_none() {
            return Err(invalid(format!("{signal} is not the number of a signal")));
        }
        if !program.is_some_and(|program| program.signal(signal)) {
            self.exit(id, 128 + signal);
        }
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.injected(Verb::Remove).await?;
        let program = {
            let state = self.state();
            state.containers.get(id).and_then(|it| it.program.clone())
        };
        if program.is_some_and(|program| program.signal(Signal::KILL.as_raw())) {
            match self.ended(id).await {
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.state().containers.remove(id);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.injected(Verb::Inspect).await?;
        self.state().known(id).map(Container::info)
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.injected(Verb::List).await?;
        let state = self.state();
        let infos = state.containers.values().map(Container::info);
        Ok(infos.filter(ContainerInfo::is_ours).collect())
    }

    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.injected(Verb::Logs).await?;
        Ok(self.state().known(id)?.log().tail(limit))
    }

    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        self.injected(Verb::Logs).await?;
        let log = Arc::clone(&self.state().known(id)?.log);
        let (first, place) = {
            let log = log.lock().expect("no panic while held");
            (log.tail(tail), log.written())
        };
        log::hand_on(first, Follower { log, place }, self.ended(id), to).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.injected(Verb::Exec).await?;
        let (program, call) = self.state().beside(id, spec)?;
        let action = format!("running {:?} in container {id}", call.args[0]);
        let answer = tokio::time::timeout(spec.time_limit, program.exec(call)).await;
        answer.unwrap_or_else(|_| Err(output::too_long("fake", action, spec)))
    }
}

impl FakeRuntime {
    /// Waits for the end of a container.
    async fn ended(&self, id: &ContainerId) -> Result<ExitStatus> {
        loop {
            let changed = self.0.changed.notified();
            if let Some(status) = self.state().known(id)?.exit {
                return Ok(status);
            }
            changed.await;
        }
    }
}

impl State {
    fn known(&self, id: &ContainerId) -> Result<&Container> {
        self.containers.get(id).ok_or_else(|| unknown(id))
    }

    /// The environment of a container: its image's and its own.
    fn environment(&self, spec: &ContainerSpec) -> Result<Vec<String>> {
        let mut images = self.images.iter();
        let image = images.find(|image| is_called(image, &spec.image));
        let image = image.ok_or_else(|| RuntimeError::ImageMissing(spec.image.clone()))?;
        Ok(oci::environment(&image.env, &spec.env))
    }

    /// Refuses an id, a name or a port that another container has.
    fn check_taken(&self, spec: &ContainerSpec) -> Result<()> {
        if self.containers.contains_key(&spec.id) {
            return Err(invalid(format!("container {} exists already", spec.id)));
        }
        for other in self.containers.values().map(|it| &it.spec) {
            let taken = if other.name == spec.name {
                format!("the name {}", spec.name)
            } else if let Some(port) = spec.ports.iter().find(|port| has_port(other, port.host)) {
                format!("port {}", port.host)
            } else {
                continue;
            };
            return Err(invalid(format!(
                "container {}: {taken} is taken by container {}",
                spec.id, other.id
            )));
        }
        Ok(())
    }

    /// Takes a container as running, and tells what it runs.
    fn begin(&mut self, id: &ContainerId) -> Result<(ContainerSpec, Call)> {
        let spec = self.known(id)?.spec.clone();
        let env = self.environment(&spec)?;
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        if container.state != ContainerState::Created {
            return Err(invalid(format!("container {id} was started already")));
        }
        container.state = ContainerState::Running;
        let call = Call {
            args: spec.args.clone(),
            env,
            cwd: spec.cwd.clone(),
            user: (0, 0),
        };
        Ok((spec, call))
    }

    /// The first program of a container, and what is to be run beside it.
    fn beside(&self, id: &ContainerId, spec: &ExecSpec) -> Result<(Arc<dyn Program>, Call)> {
        let container = self.known(id)?;
        let program = container.program.clone();
        let program = program.ok_or_else(|| invalid(format!("container {id} does not run")))?;
        if spec.args.is_empty() {
            return Err(invalid("there is no program to run"));
        }
        let env = self.environment(&container.spec)?;
        let call = Call {
            args: spec.args.clone(),
            env: oci::environment(&env, &spec.env),
            cwd: spec.cwd.clone(),
            user: spec.user,
        };
        Ok((program, call))
    }
}

impl Container {
    fn info(&self) -> ContainerInfo {
        ContainerInfo {
            id: self.spec.id.clone(),
            name: self.spec.name.clone(),
            image: self.spec.image.clone(),
            state: self.state,
            labels: self.spec.labels.clone(),
            pid: self.pid,
            cgroup: Some(cgroup(&self.spec.id)),
            address: None,
            ports: self.spec.ports.clone(),
            exit: self.exit,
        }
    }
}

fn cgroup(id: &ContainerId) -> PathBuf {
    format!("/fake/{id}").into()
}

fn has_port(spec: &ContainerSpec, host: u16) -> bool {
    spec.ports.iter().any(|port| port.host == host)
}

/// Refuses what has no form in OCI's words, as engines that use them do, and limits that Linux does not take.
fn checked(spec: &ContainerSpec, image_env: Vec<String>) -> Result<()> {
    let place = Placement {
        rootfs: "/".into(),
        netns: None,
        cgroup: cgroup(&spec.id),
        limits: true,
        image_env,
        open_files: 1024,
        device_rules: true,
    };
    let named = |text: String| invalid(format!("container {}: {text}", spec.id));
    oci::spec(spec, &place).map_err(|error| named(error.to_string()))?;
    limits(&spec.limits).map_err(named)
}

fn limits(limits: &Limits) -> Result<(), String> {
    if let Some(us) = limits.cpu_period_us.filter(|us| !PERIODS.contains(us)) {
        return Err(format!("{us} us cannot be a period of CPU time"));
    }
    if let Some(us) = limits.cpu_quota_us.filter(|us| *us < SHORTEST_QUOTA) {
        return Err(format!("{us} us of CPU time are too few to be applied"));
    }
    let cpus = limits.cpuset.as_deref().unwrap_or("0");
    let known = |cpu: &str| cpu.trim().parse::<u32>().is_ok_and(|cpu| cpu < CPUS);
    if cpus.split([',', '-']).all(known) {
        Ok(())
    } else {
        Err(format!("the CPUs {cpus} are not those of this machine"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::fake::no_runner;
    use crate::runtime::{ImageInfo, LABEL_OWNER, NetworkMode, OWNER, Seccomp};

    /// A container that runs a script, on an engine of its own.
    async fn running() -> (FakeRuntime, ContainerId) {
        let engine = FakeRuntime::new(no_runner());
        engine.add_image(ImageInfo {
            names: vec!["image".to_owned()],
            ..ImageInfo::default()
        });
        let spec = ContainerSpec {
            id: ContainerId("one".to_owned()),
            name: "one".to_owned(),
            image: "image".to_owned(),
            args: vec!["program".to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            hostname: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            limits: Limits::default(),
            network: NetworkMode::None,
            ports: Vec::new(),
            labels: [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into(),
            seccomp: Seccomp::Default,
            capabilities: Vec::new(),
            no_new_privileges: true,
            log_limit: 8,
        };
        let id = engine.create(&spec).await.expect("created");
        engine.start(&id).await.expect("started");
        (engine, id)
    }

    #[tokio::test]
    async fn every_signal_ends_a_script_at_once() {
        for signal in [2, 9, 15] {
            let (engine, id) = running().await;
            engine.kill(&id, signal).await.expect("killed");
            let exit = engine.inspect(&id).await.expect("told").exit;
            assert_eq!(exit.map(|exit| exit.code), Some(128 + signal));
        }
    }

    #[tokio::test]
    async fn what_is_run_beside_a_script_prints_its_own_command_line() {
        let (engine, id) = running().await;
        let spec = ExecSpec {
            args: vec!["echo".to_owned(), "a".to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            user: (0, 0),
            time_limit: Duration::from_secs(1),
        };
        let answer = engine.exec(&id, &spec).await.expect("run");
        assert_eq!((answer.code, answer.stdout), (0, b"echo a".to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_learns_of_a_gap_and_of_the_last_words_of_what_was_removed() {
        let (engine, id) = running().await;
        let (sender, mut parts) = mpsc::channel(1);
        let following = engine.follow(&id, 0, sender);
        let reading = async {
            assert_eq!(parts.recv().await, Some(LogPart::Bytes(Vec::new())));
            engine.log(&id, b"more than is kept");
            assert_eq!(parts.recv().await, Some(LogPart::Gap));
            assert_eq!(
                parts.recv().await,
                Some(LogPart::Bytes(b" is kept".to_vec()))
            );
            engine.log(&id, b"end");
            engine.remove(&id).await.expect("removed");
            assert_eq!(parts.recv().await, Some(LogPart::Bytes(b"end".to_vec())));
            assert_eq!(parts.recv().await, None);
        };
        let (followed, ()) = tokio::join!(following, reading);
        followed.expect("it ends with the container");
    }
}
