//! The daemon with real etcd and Redis, and a socket in the manager's place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::event::{Event, EventSender};
use backendai_agent::agent::request::Reply;
use backendai_agent::cli::CommonOptions;
use backendai_agent::cli::daemon::{self, Place, Stop};
use backendai_agent::cli::serve::ServeArgs;
use backendai_agent::config::Config;
use backendai_agent::manager::identity::Sources;

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
        let mut config = Config::load(&args, &common).unwrap();
        config.front.region = None;
        config
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

#[tokio::test]
async fn the_agent_waits_for_the_manager_and_says_nothing_before() {
    let world = World::new(None).await;
    let manager = world.manager().await;
    let daemon = world.start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
    world.announce_manager().await;
    let names = manager.names_until("instance_started").await;
    assert_eq!(names[0], "instance_heartbeat");
    daemon.stop(Stop::Interrupt).await;
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_the_manager() {
    let world = World::new(None).await;
    let daemon = world.start();
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.stop(Stop::Terminate).await;
    assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
}

#[tokio::test]
async fn missing_keys_are_named() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let mut client = world.etcd.client.clone();
    for key in ["nodes/manager/event_addr", "nodes/redis"] {
        let key = format!("/sorna/test/{key}");
        client.delete(key.as_str(), None).await.unwrap();
        let error = world.start().ended().await.unwrap_err().to_string();
        assert!(error.contains(&key), "{error}");
        assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
    }
}

#[tokio::test]
async fn a_wrong_redis_password_ends_the_start_and_leaves_no_keys() {
    let world = World::new(Some("right")).await;
    world.announce_manager().await;
    let key = "/sorna/test/nodes/redis/password";
    for (given, remedy) in [("wrong", true), ("", true), ("right", false)] {
        world.etcd.put(key, given).await;
        if !remedy {
            let manager = world.manager().await;
            let daemon = world.start();
            manager.names_until("instance_started").await;
            daemon.stop(Stop::Interrupt).await;
            return;
        }
        let error = format!("{:#}", world.start().ended().await.unwrap_err());
        assert!(error.contains("nodes/redis/password"), "{error}");
        assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
    }
}

#[tokio::test]
async fn an_unreachable_redis_ends_the_start() {
    let mut world = World::new(None).await;
    world.announce_manager().await;
    world.redis.stop();
    let error = format!("{:#}", world.start().ended().await.unwrap_err());
    let address = format!("redis at 127.0.0.1:{}", world.redis.port);
    assert!(error.contains(&address), "{error}");
    assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
}

#[tokio::test]
async fn a_taken_rpc_port_ends_the_start_with_a_remedy() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let _taken = std::net::TcpListener::bind(("0.0.0.0", world.agent_port)).unwrap();
    let daemon = world.start();
    let node = daemon.node.clone();
    let error = format!("{:#}", daemon.ended().await.unwrap_err());
    assert!(error.contains("--agent-port"), "{error}");
    assert_eq!(*node.shutdowns.lock().unwrap(), [false], "kernels run on");
    assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
}

#[tokio::test]
async fn the_node_learns_where_the_volumes_are() {
    let world = World::new(None).await;
    world.announce_manager().await;
    world
        .etcd
        .put("/sorna/test/volumes/_fsprefix", "//pfx/")
        .await;
    let daemon = world.start();
    let (_sender, place) = daemon.events.await.unwrap();
    assert_eq!(place.volume_mount, "/mnt");
    assert_eq!(place.volume_prefix, "pfx/");
    assert_eq!(place.identity.id, "i-node1");
    daemon.stops.send(Stop::Interrupt).await.unwrap();
    daemon.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn events_wait_while_the_manager_is_away_and_come_in_order() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let mut daemon = world.start();
    manager.names_until("instance_started").await;
    let (sender, _place) = (&mut daemon.events).await.unwrap();
    manager.0.close(Duration::ZERO).await;
    drop(manager);

    // Which of the first events went into the dying connection is up to TCP: all that follow must arrive.
    let sent = 50;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for number in 0..sent {
        let id = kernel(&format!("k{number}"));
        sender.send(Event::KernelPreparing(id)).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let manager = world.manager().await;
    let mut next = 0;
    while next < sent {
        let (name, args) = manager.news().await;
        assert_eq!(name, "kernel_preparing");
        assert_eq!(args, format!("[\"k{next}\"]"));
        next += 1;
    }
    daemon.stops.send(Stop::Interrupt).await.unwrap();
    assert_eq!(manager.news().await.0, "instance_terminated");
    daemon.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn sigterm_destroys_and_the_last_event_is_the_agents_own() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let mut daemon = world.start();
    manager.names_until("instance_started").await;
    let (sender, _place) = (&mut daemon.events).await.unwrap();
    let event = Event::KernelTerminated {
        kernel: kernel("k1"),
        reason: "agent-termination".to_owned(),
        stats: Some(KernelStats {
            cpu_used: 12.5,
            ..KernelStats::default()
        }),
    };
    *daemon.node.at_shutdown.lock().unwrap() = Some((sender, event));
    let node = daemon.node.clone();
    daemon.stop(Stop::Terminate).await;
    assert_eq!(*node.shutdowns.lock().unwrap(), [true]);
    let expected = r#"["k1", "self-terminated", nil]"#;
    assert_eq!(
        manager.news().await,
        ("kernel_terminated".into(), expected.into())
    );
    let cpu: String = world.redis.command(&["HGET", "k1", "cpu_used"]).await;
    assert_eq!(
        cpu, "12.5",
        "the last statistics are there when the event is"
    );
    assert_eq!(manager.news().await.0, "instance_terminated");
}

#[tokio::test]
async fn sigterm_can_be_told_to_keep_kernels() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let mut config = world.config();
    config.on_sigterm = backendai_agent::config::OnSigterm::Keep;
    let daemon = world.start_with(config);
    manager.names_until("instance_started").await;
    let node = daemon.node.clone();
    daemon.stop(Stop::Terminate).await;
    assert_eq!(*node.shutdowns.lock().unwrap(), [false]);
}

#[tokio::test]
async fn statistics_are_in_redis_and_survive_its_outage() {
    let mut world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let daemon = world.start();
    *daemon.node.stats.lock().unwrap() = NodeStats {
        cpu_pct: 123.4567,
        mem_cur_bytes: 4096,
        kernels: vec![(
            kernel("k1"),
            KernelStats {
                precpu_used: 1.0,
                cpu_used: 123.456_789,
                cpu_system_used: 1e16,
                mem_max_bytes: 8192,
                ..KernelStats::default()
            },
        )],
    };
    manager.names_until("instance_started").await;
    for round in ["first", "after the outage"] {
        let found = eventually(round, async || {
            let found: Vec<String> = world.redis.command(&["HGETALL", "k1"]).await;
            (!found.is_empty()).then_some(found)
        });
        let expected = [
            "precpu_used",
            "1.0",
            "cpu_used",
            "123.456789",
            "precpu_system_used",
            "0.0",
            "cpu_system_used",
            "1e+16",
            "mem_max_bytes",
            "8192",
            "mem_cur_bytes",
            "0",
            "net_rx_bytes",
            "0",
            "net_tx_bytes",
            "0",
            "io_read_bytes",
            "0",
            "io_write_bytes",
            "0",
            "io_max_scratch_size",
            "0",
            "io_cur_scratch_size",
            "0",
        ];
        assert_eq!(found.await, expected);
        let node = eventually("the node's hash", async || {
            let found: Vec<String> = world.redis.command(&["HGETALL", "i-node1"]).await;
            (found.get(1).is_some_and(|percent| percent == "123.46")).then_some(found)
        });
        let expected = ["cpu_pct", "123.46", "mem_cur_bytes", "4096"];
        assert_eq!(node.await, expected);
        for key in ["k1", "i-node1"] {
            let ttl: i64 = world.redis.command(&["PTTL", key]).await;
            assert!((1..=30_000).contains(&ttl), "{key}: {ttl}");
        }
        if round == "first" {
            world.redis.stop();
            assert_eq!(
                manager.event().await.0,
                "instance_heartbeat",
                "heartbeats go on"
            );
            assert_eq!(
                manager.event().await.0,
                "instance_heartbeat",
                "heartbeats go on"
            );
            world.redis.restart().await;
        }
    }
    daemon.stop(Stop::Interrupt).await;
}

#[tokio::test]
async fn the_helper_socket_answers_programs_in_kernels() {
    use zeromq::{Socket, SocketRecv, SocketSend};
    let world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let daemon = world.start();
    manager.names_until("instance_started").await;
    let path = world.folder.path().join("run/agent.sock");
    assert!(Path::exists(&path));
    let mut client = zeromq::ReqSocket::new();
    client
        .connect(&format!("ipc://{}", path.display()))
        .await
        .unwrap();
    client.send("format-disk".into()).await.unwrap();
    let answer = client.recv().await.unwrap().into_vec();
    assert_eq!(answer[0][..], (-2i32).to_ne_bytes());
    assert_eq!(&answer[1][..], b"Invalid action");
    let pid = i32::try_from(std::process::id()).unwrap();
    let question: Vec<bytes::Bytes> = vec![
        "host-pid-to-container-pid".into(),
        "no-such-container".into(),
        pid.to_ne_bytes().to_vec().into(),
    ];
    client.send(question.try_into().unwrap()).await.unwrap();
    let answer = client.recv().await.unwrap().into_vec();
    assert_eq!(answer[0][..], 0i32.to_ne_bytes());
    assert_eq!(answer[1].len(), 4);
    daemon.stop(Stop::Interrupt).await;
}

#[tokio::test]
async fn metrics_and_health_are_served() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    async fn get(port: u16, path: &str) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }
    let world = World::new(None).await;
    let manager = world.manager().await;
    let port = free_port();
    let mut config = world.config();
    config.metrics = Some(([127, 0, 0, 1], port).into());
    let daemon = world.start_with(config);
    let healthy = eventually("health", async || get(port, "/healthz").await).await;
    assert!(healthy.starts_with("HTTP/1.1 200"));
    let ready = get(port, "/readyz").await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 503"), "no manager yet: {ready}");
    world.announce_manager().await;
    manager.names_until("instance_started").await;
    eventually("readiness", async || {
        let ready = get(port, "/readyz").await?;
        ready.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let metrics = get(port, "/metrics").await.unwrap();
    assert!(
        metrics.contains("\nbackendai_agent_kernels 0\n"),
        "{metrics}"
    );
    daemon.stop(Stop::Interrupt).await;
}

#[tokio::test]
async fn a_second_signal_forces_the_end() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let manager = world.manager().await;
    let daemon = world.start();
    *daemon.node.hang_at_shutdown.lock().unwrap() = true;
    manager.names_until("instance_started").await;
    daemon.stops.send(Stop::Terminate).await.unwrap();
    let agents = "/sorna/test/nodes/agents/";
    eventually("the keys' end", async || {
        world.etcd.under(agents).await.is_empty().then_some(())
    })
    .await;
    daemon.stops.send(Stop::Terminate).await.unwrap();
    let error = daemon.ended().await.unwrap_err().to_string();
    assert!(error.contains("second signal"), "{error}");
}

#[tokio::test]
async fn a_node_that_cannot_be_built_ends_the_start_and_leaves_no_keys() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let build = async |_: Config, _: Place, _: EventSender| anyhow::bail!("no engine here");
    let (_stops, receiver) = mpsc::channel(1);
    let sources = Sources {
        root: world.folder.path().to_owned(),
        metadata: "127.0.0.1:1".to_owned(),
        host_name: "node1".to_owned(),
    };
    let error = Box::pin(daemon::run(world.config(), sources, build, receiver)).await;
    assert_eq!(error.unwrap_err().to_string(), "no engine here");
    assert_eq!(world.etcd.under("/sorna/test/nodes/agents/").await, []);
}

#[tokio::test]
async fn etcd_with_users_wants_the_right_password() {
    let world = World::new(None).await;
    world.announce_manager().await;
    let mut client = world.etcd.client.clone();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let mut config = world.config();
    let refused = world.start_with(config.clone()).ended().await.unwrap_err();
    assert!(
        refused.to_string().contains(&world.etcd.address),
        "{refused}"
    );
    config.front.etcd.user = Some("root".to_owned());
    config.front.etcd.password = Some("wrong".to_owned());
    let refused = world.start_with(config.clone()).ended().await.unwrap_err();
    assert!(
        refused.to_string().contains(&world.etcd.address),
        "{refused}"
    );
    config.front.etcd.password = Some("secret".to_owned());
    let manager = world.manager().await;
    let daemon = world.start_with(config);
    manager.names_until("instance_started").await;
    daemon.stop(Stop::Interrupt).await;
}
