//! The node below every front-end: the engine, the krunner layer, and the agent on top of them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::CommonArgs;
use super::daemon::Place;
use crate::agent::event::EventSender;
use crate::agent::{Agent, AgentConfig};
use crate::backends::{self, Adoption, Engine, EngineConfig, RuntimeKind};
use crate::config::{Config, KrunnerSource, Sandbox};
use crate::image::ImageAdmin;
use crate::kernel::plan::PlanSettings;
use crate::kernel::runner::zmq::ZmqConnect;
use crate::krunner::{KrunnerEnv, Source};
use crate::manager::Node;
use crate::resource::device::{Cpu, Memory};
use crate::stats::StatsCollector;

/// The jail's command, before the runner's (19.03 agent, `--sandbox-type jail`).
const JAIL: [&str; 3] = [
    "/opt/backend.ai/bin/jail",
    "-policy",
    "/etc/backend.ai/jail/policy.yml",
];
/// Makes queries end with exit code 0 whatever happened, which is what a 19.03 manager's clients know.
const EXIT_CODES: (&str, &str) = ("BACKENDAI_EXIT_CODES", "19.03");

/// Opens the engine that the options name.
///
/// # Errors
/// When it cannot serve; the text says what it lacks.
pub async fn open_engine(common: &CommonArgs) -> anyhow::Result<Engine> {
    open_with(common.runtime, engine_config(common)).await
}

/// Opens the engine for an operator, who sees also what the Python agent left below this folder.
///
/// # Errors
/// When it cannot serve; the text says what it lacks.
pub async fn open_to_operate(common: &CommonArgs, scratch_root: PathBuf) -> anyhow::Result<Engine> {
    let adoption = Adoption {
        // Which agent has taken them over is not known here.
        agent_id: String::new(),
        scratch_root,
    };
    let config = EngineConfig {
        adoption: Some(adoption),
        ..engine_config(common)
    };
    open_with(common.runtime, config).await
}

async fn open_with(runtime: RuntimeKind, config: EngineConfig) -> anyhow::Result<Engine> {
    backends::open(runtime, config)
        .await
        .context("cannot open the container engine")
}

/// Opens the images of the engine that the options name; the engine itself need not be able to serve.
///
/// # Errors
/// When they cannot be read; the text says why.
pub async fn open_images(common: &CommonArgs) -> anyhow::Result<Arc<dyn ImageAdmin>> {
    backends::open_images(common.runtime, engine_config(common))
        .await
        .context("cannot open the engine's images")
}

/// Where the engine of the options is.
pub(super) fn engine_config(common: &CommonArgs) -> EngineConfig {
    EngineConfig {
        state_dir: common.state_dir.clone(),
        run_dir: common.run_dir.clone(),
        endpoint: common.runtime_endpoint.clone(),
        tls: common.runtime_tls.clone(),
        snapshotter: common.snapshotter.clone(),
        handler: common.runtime_handler.clone(),
        ..EngineConfig::default()
    }
}

/// Whose kernels' files must be: those of an ordinary user's agent cannot be given to others, and where users inside have
/// other numbers there is nobody inside who could have them. `wanted` is the user of the option named.
///
/// # Errors
/// When the option wants somebody else.
pub fn own_user(
    engine: &Engine,
    option: &str,
    wanted: Option<u32>,
) -> anyhow::Result<Option<(u32, u32)>> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if user.is_root() || engine.maps_users {
        return Ok(None);
    }
    let (user, group) = (user.as_raw(), group.as_raw());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != user) {
        anyhow::bail!(
            "{option} {wanted}: the agent is user {user}'s, who can give files to nobody else; leave the option out, or \
             run the agent as root"
        );
    }
    Ok(Some((user, group)))
}

/// What kernels see at `/opt/backend.ai`, unpacked once for each node.
///
/// # Errors
/// When it cannot be had; the text says what to do.
pub async fn krunner(common: &CommonArgs, source: &KrunnerSource) -> anyhow::Result<KrunnerEnv> {
    let env = source.env.as_deref().map(Source::parse).unwrap_or_default();
    Ok(env
        .open(source.package.as_deref(), &common.state_dir)
        .await?)
}

/// Builds the node behind the 19.03 manager's front-end.
///
/// # Errors
/// Whatever keeps the node from working; the daemon then ends with status 1.
pub async fn build(
    config: Config,
    place: Place,
    events: EventSender,
) -> anyhow::Result<Arc<dyn Node>> {
    let kernels = EngineConfig {
        adoption: Some(Adoption {
            agent_id: place.identity.id.clone(),
            scratch_root: config.kernel.scratch_root.clone(),
        }),
        ..engine_config(&config.common)
    };
    let engine = open_with(config.common.runtime, kernels).await?;
    let kernel = config.kernel;
    let own_user = own_user(&engine, "--kernel-uid", Some(kernel.uid))?;
    let krunner = krunner(&config.common, &kernel.krunner).await?;
    let host = kernel.host.clone();
    let jail = match kernel.sandbox {
        Sandbox::Docker => Vec::new(),
        Sandbox::Jail => JAIL
            .iter()
            .map(ToString::to_string)
            .chain(kernel.jail_args)
            .collect(),
    };
    let plan = PlanSettings {
        agent_id: place.identity.id,
        kernel_uid: kernel.uid,
        own_user,
        krunner,
        agent_socket: Some(config.front.helper_socket),
        vfolder_base: place.volume_mount.into(),
        vfolder_prefix: place.volume_prefix,
        jail,
        no_new_privileges: kernel.no_new_privileges,
        runner_env: vec![(EXIT_CODES.0.to_owned(), EXIT_CODES.1.to_owned())],
    };
    let agent = Agent::start(AgentConfig {
        plan,
        kernel_host: host.clone().unwrap_or(place.identity.host),
        runner_host: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
        port_range: kernel.ports,
        scratch_root: kernel.scratch_root,
        scratch_in_memory: kernel.scratch_in_memory,
        devices: vec![Box::new(Cpu::detect()?), Box::new(Memory::detect())],
        keep_containers: kernel.keep_dead,
        engine_listens: engine.listens,
        runtime: engine.runtime,
        images: engine.images,
        connect: Arc::new(ZmqConnect),
        stats: StatsCollector::default(),
        events,
    })
    .await?;
    Ok(Arc::new(agent))
}
