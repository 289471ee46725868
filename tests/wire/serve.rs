//! The daemon with real etcd and Redis, and a socket in the manager's place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::event::{Event, EventSender};
use backendai_agent::agent::request::Reply;
use backendai_agent::cli::CommonOptions;
use backendai_agent::cli::serve::ServeArgs;
use backendai_agent::config::Config;
use backendai_agent::manager::identity::Sources;
use backendai_agent::manager::v1903::daemon::{self, Place, Stop};
use backendai_agent::manager::{Node, NodeStats};
use backendai_agent::stats::KernelStats;
use tempfile::TempDir;
use tokio::sync::mpsc;
use zmtp::net::{AsyncPull, NetConfig};

use crate::services::{Etcd, Redis, free_port};
use crate::stub::{PATIENCE, StubNode, eventually, kernel};

/// Name and arguments of an event.
type Seen = (String, String);

/// Everything around the daemon.
struct World {
    etcd: Etcd,
    redis: Redis,
    events_port: u16,
    folder: TempDir,
    agent_port: u16,
}

impl World {
    async fn new(password: Option<&'static str>) -> Self {
        let etcd = Etcd::start().await;
        let redis = Redis::start(password).await;
        let world = Self {
            events_port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            agent_port: free_port(),
            etcd,
            redis,
        };
        let redis = format!("127.0.0.1:{}", world.redis.port);
        world.etcd.put("/sorna/test/nodes/redis", &redis).await;
        let events = format!("127.0.0.1:{}", world.events_port);
        world
            .etcd
            .put("/sorna/test/nodes/manager/event_addr", &events)
            .await;
        world
    }

    /// What a manager does at its start.
    async fn announce_manager(&self) {
        self.etcd
            .put("/sorna/test/nodes/manager", "i-manager")
            .await;
    }

    fn config(&self) -> Config {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let common = CommonOptions {
            state_dir: Some(path("state")),
            run_dir: Some(path("run")),
            ..CommonOptions::default()
        };
        let args = ServeArgs {
            namespace: Some("test".to_owned()),
            etcd_addr: Some(self.etcd.address.clone()),
            agent_port: Some(self.agent_port.to_string()),
            agent_host_override: Some("127.0.0.1".to_owned()),
            pid_file: Some(path("pid")),
            ..ServeArgs::default()
        };
        Config::load(&args, &common).unwrap()
    }

    async fn manager(&self) -> Manager {
        let address = format!("127.0.0.1:{}", self.events_port);
        let pull = AsyncPull::bind(&address, NetConfig::default()).await;
        Manager(pull.unwrap())
    }

    /// Starts a daemon; it goes on with the next await.
    fn start(&self) -> Daemon {
        self.start_with(self.config())
    }

    fn start_with(&self, config: Config) -> Daemon {
        let node = Arc::new(StubNode::new(|_| Ok(Reply::Done)));
        let (stops, receiver) = mpsc::channel(4);
        let (events_sender, events) = tokio::sync::oneshot::channel();
        let given = node.clone();
        let build = move |_: Config, place: Place, sender: EventSender| async move {
            events_sender.send((sender, place)).unwrap();
            Ok(given as Arc<dyn Node>)
        };
        let sources = Sources {
            root: self.folder.path().to_owned(),
            metadata: "127.0.0.1:1".to_owned(),
            host_name: "node1".to_owned(),
        };
        let task = tokio::spawn(daemon::run(config, sources, build, receiver));
        Daemon {
            node,
            stops,
            events,
            task,
        }
    }
}

struct Daemon {
    node: Arc<StubNode>,
    stops: mpsc::Sender<Stop>,
    events: tokio::sync::oneshot::Receiver<(EventSender, Place)>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Daemon {
    async fn stop(self, stop: Stop) {
        self.stops.send(stop).await.unwrap();
        self.ended().await.unwrap();
    }

    async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the daemon ends")
            .unwrap()
    }
}

/// The manager's end of the event link.
struct Manager(AsyncPull);

impl Manager {
    async fn event(&self) -> Seen {
        let message = tokio::time::timeout(PATIENCE, self.0.recv()).await;
        let frames = message.expect("an event").unwrap().into_frames();
        let [name, agent, args] = <[_; 3]>::try_from(frames).expect("three frames");
        assert_eq!(&agent[..], b"i-node1");
        let args = rmpv::decode::read_value(&mut &args[..]).unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), args.to_string())
    }

    /// The next event that is no heartbeat.
    async fn news(&self) -> Seen {
        loop {
            let event = self.event().await;
            if event.0 != "instance_heartbeat" {
                return event;
            }
        }
    }

    async fn names_until(&self, last: &str) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let (name, _) = self.event().await;
            let end = name == last;
            names.push(name);
            if end {
                return names;
            }
        }
    }
}

fn agent_keys(values: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |&(key, value): &(&str, &str)| {
        (format!("/sorna/test/nodes/agents/{key}"), value.to_owned())
    };
    values.iter().map(pair).collect()
}

#[tokio::test]
async fn start_up_and_shutdown_follow_the_order_of_the_original() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let agents = "/sorna/test/nodes/agents/";
    world
        .etcd
        .put(&format!("{agents}i-node10"), "running")
        .await;
    let others = agent_keys(&[("i-node10", "running")]);
    let manager = world.manager().await;
    let daemon = world.start();

    let (name, args) = manager.event().await;
    assert_eq!(name, "instance_heartbeat");
    let expected = format!(
        concat!(
            r#"[{{"ip": "127.0.0.1", "region": "local", "addr": "tcp://127.0.0.1:{}", "#,
            r#""resource_slots": {{"cpu": ["count", "4"], "mem": ["bytes", "25276514304"]}}, "#,
            r#""images": [1, 0, 144]}}]"#
        ),
        world.agent_port
    );
    assert_eq!(args, expected);
    assert_eq!(
        manager.news().await,
        ("instance_started".into(), "[]".into())
    );
    let mut expected = agent_keys(&[("i-node1", "running"), ("i-node1/ip", "127.0.0.1")]);
    expected.extend(others.clone());
    assert_eq!(world.etcd.under(agents).await, expected);
    let pid = std::fs::read_to_string(world.folder.path().join("pid")).unwrap();
    assert_eq!(pid, std::process::id().to_string());

    let node = daemon.node.clone();
    daemon.stop(Stop::Interrupt).await;
    let last = manager.news().await;
    assert_eq!(
        last,
        ("instance_terminated".into(), r#"["shutdown"]"#.into())
    );
    assert_eq!(*node.shutdowns.lock().unwrap(), [false]);
    assert_eq!(world.etcd.under(agents).await, others);
    assert!(!world.folder.path().join("pid").exists());
}
