//! The daemon's life under a 19.03 manager: the order of start-up and of shutdown (19.03, sections 1.2 and 11.5).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rmpv::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::event::{Event, EventSender};
use crate::config::{Config, OnSigterm};
use crate::etcd::Etcd;
use crate::manager::identity::{Identity, Sources};
use crate::manager::router::Router;
use crate::manager::v1903::event::{self, EventLink};
use crate::manager::v1903::heartbeat::{self, Address};
use crate::manager::v1903::redis::StatsWriter;
use crate::manager::v1903::server::{self, Server};
use crate::manager::{Node, helper};
use crate::metrics::Health;

/// How long kernels may take to go when SIGTERM destroys them.
const DESTROY: Duration = Duration::from_secs(120);

/// Why the daemon is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT: kernels run on.
    Interrupt,
    /// SIGTERM: kernels are destroyed, unless configured otherwise.
    Terminate,
}

/// What the node must know of where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who this node is.
    pub identity: Identity,
    /// Base folder of the volume hosts.
    pub volume_mount: String,
    /// Prefix inside a volume host, without leading slashes.
    pub volume_prefix: String,
}

/// Runs the daemon until the first of `stops`; a second one, while it shuts down, forces the end. The node is made by
/// `build` once etcd has told all that it must know.
///
/// # Errors
/// Whatever ended the start-up, or that the end was forced.
pub async fn run<B, F>(
    config: Config,
    sources: Sources,
    build: B,
    mut stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<()>
where
    B: FnOnce(Config, Place, EventSender) -> F,
    F: Future<Output = anyhow::Result<Arc<dyn Node>>>,
{
    let pid_file = PidFile::write(config.pid_file.clone())?;
    let mut daemon = Daemon::new(config);
    let started = tokio::select! {
        started = daemon.start(&sources, build) => started.map(|()| None),
        Some(stop) = stops.recv() => Ok(Some(stop)),
    };
    let stop = match started {
        Ok(None) => Ok(stops.recv().await.unwrap_or(Stop::Interrupt)),
        Ok(Some(stop)) => Ok(stop),
        Err(error) => Err(error),
    };
    let destroy =
        matches!(stop, Ok(Stop::Terminate)) && daemon.config.on_sigterm == OnSigterm::Destroy;
    tokio::select! {
        () = daemon.shut_down(destroy) => {}
        Some(again) = stops.recv() => {
            anyhow::bail!("a second signal ({again:?}) forced the end; kernels may be left running")
        }
    }
    drop(pid_file);
    stop.map(|_| ())
}

/// The file with our process id; removed when this is dropped.
struct PidFile(Option<PathBuf>);

impl PidFile {
    fn write(path: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = &path {
            std::fs::write(path, std::process::id().to_string())
                .with_context(|| format!("pid file {}", path.display()))?;
        }
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the pid file");
        }
    }
}

/// What has been started, to be stopped in order.
struct Daemon {
    config: Config,
    health: Arc<Health>,
    /// etcd and our id there, once we may have written to it.
    announced: Option<(Etcd, String)>,
    node: Option<Arc<dyn Node>>,
    link: Option<Arc<EventLink>>,
    rpc: Stage,
    background: Stage,
    events: Stage,
}

/// Tasks that are stopped together.
#[derive(Default)]
struct Stage {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Stage {
    async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Daemon {
    fn new(config: Config) -> Self {
        Self {
            config,
            health: Arc::default(),
            announced: None,
            node: None,
            link: None,
            rpc: Stage::default(),
            background: Stage::default(),
            events: Stage::default(),
        }
    }

    async fn start<B, F>(&mut self, sources: &Sources, build: B) -> anyhow::Result<()>
    where
        B: FnOnce(Config, Place, EventSender) -> F,
        F: Future<Output = anyhow::Result<Arc<dyn Node>>>,
    {
        self.serve_health().await?;
        let front = self.config.front.clone();
        let host = front.agent_host.as_deref();
        let identity = Identity::detect(sources, host, front.region.as_deref()).await;
        let id = identity.id.clone();
        tracing::info!(
            id,
            host = identity.host,
            region = identity.region,
            "this node"
        );
        if let Some(folder) = front.helper_socket.parent() {
            tokio::fs::create_dir_all(folder)
                .await
                .with_context(|| format!("--run-dir {}", folder.display()))?;
        }

        let mut etcd = Etcd::connect(&front.etcd).await?;
        etcd.wait_for_manager().await?;
        let settings = etcd.manager_settings().await?;
        self.announced = Some((etcd.clone(), id.clone()));
        etcd.announce_starting(&id).await?;

        let (event_sender, events) = mpsc::unbounded_channel();
        let place = Place {
            identity: identity.clone(),
            volume_mount: settings.volume_mount.clone(),
            volume_prefix: settings.volume_prefix.clone(),
        };
        let node = build(self.config.clone(), place, event_sender).await?;
        self.node = Some(node.clone());
        self.health.know(node.clone());

        self.serve_helper()?;
        let password = settings.redis_password.as_deref();
        let stats = StatsWriter::connect(&settings.redis, password, &id).await?;
        let link = Arc::new(EventLink::connect(&settings.event_address, &id));
        self.link = Some(link.clone());
        let port = front.agent_port;
        let listener = TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("RPC port {port}; choose another with --agent-port"))?;

        let address = Address {
            host: identity.host.clone(),
            port,
            region: identity.region,
        };
        heartbeat::send(&*node, &address, &link);
        let stop = self.background.stop.clone();
        let beats = heartbeat::run(node.clone(), address, link.clone(), stop.clone());
        self.background.tasks.spawn(beats);
        let writing = stats.clone().run(node.clone(), stop);
        self.background.tasks.spawn(writing);
        let stop = self.events.stop.clone();
        self.events
            .tasks
            .spawn(forward(events, stats, link.clone(), stop));
        let router = Router::tcp(listener, server::LIMITS);
        let server = Server::new(node, self.health.rpc());
        let serving = server.run(router, self.rpc.stop.clone());
        self.rpc.tasks.spawn(serving);

        etcd.announce_running(&id, &identity.host).await?;
        link.send("instance_started", &Value::Array(Vec::new()));
        self.health.set_ready(true);
        tracing::info!(port, "serving the manager");
        Ok(())
    }

    async fn serve_health(&self) -> anyhow::Result<()> {
        let Some(address) = self.config.metrics else {
            return Ok(());
        };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--metrics-addr {address}"))?;
        let serving = crate::metrics::serve(listener, self.health.clone());
        let stop = self.background.stop.clone();
        self.background
            .tasks
            .spawn(stop.run_until_cancelled_owned(serving));
        Ok(())
    }

    fn serve_helper(&self) -> anyhow::Result<()> {
        let path = &self.config.front.helper_socket;
        let router = Router::unix(path, helper::LIMITS)
            .with_context(|| format!("helper socket {}", path.display()))?;
        let translate: helper::PidTranslator =
            Arc::new(|container, pid| helper::translate("/proc".as_ref(), container, pid));
        let serving = helper::run(router, translate, self.background.stop.clone());
        self.background.tasks.spawn(serving);
        Ok(())
    }

    /// Stops what has been started. The keys in etcd go first, `instance_terminated` is the last event.
    async fn shut_down(&mut self, destroy: bool) {
        self.health.set_ready(false);
        if let Some((mut etcd, id)) = self.announced.take()
            && let Err(error) = etcd.forget_agent(&id).await
        {
            tracing::error!(%error, "the agent's keys are left in etcd");
        }
        self.rpc.end().await;
        if let Some(node) = self.node.take() {
            let end = tokio::time::timeout(DESTROY, node.shutdown(destroy));
            if end.await.is_err() {
                tracing::error!("the node did not come to its end; kernels may be left");
            }
        }
        self.background.end().await;
        self.events.end().await;
        if let Some(link) = self.link.take() {
            link.send(
                "instance_terminated",
                &Value::Array(vec!["shutdown".into()]),
            );
            link.close().await;
        }
    }
}

/// Sends the node's events to the manager; the last statistics of a kernel are in Redis before its end is told.
async fn forward(
    mut events: mpsc::UnboundedReceiver<Event>,
    stats: StatsWriter,
    link: Arc<EventLink>,
    stop: CancellationToken,
) {
    while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
        forward_one(&event, &stats, &link).await;
    }
    while let Ok(event) = events.try_recv() {
        forward_one(&event, &stats, &link).await;
    }
}

async fn forward_one(event: &Event, stats: &StatsWriter, link: &EventLink) {
    if let Event::KernelTerminated {
        kernel,
        stats: Some(last),
        reason,
    } = event
    {
        tracing::info!(%kernel, reason, "the kernel has ended");
        stats.write_last(kernel, last).await;
    }
    let (name, args) = event::encode(event);
    link.send(name, &args);
}
