//! The daemon under measurement, with etcd, Redis and a manager's event socket beside it, all on free ports.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backendai_agent::agent::request::KernelId;
use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::stats::{StatsCollector, Target};
use rmpv::Value;
use zmtp::net::{AsyncPull, NetConfig};

use super::report::Series;
use super::rpc::{Rpc, map};

/// Name under which the image is imported.
pub const IMAGE: &str = "bench/python:latest";

/// A program that ends with this value.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon and what it talks to.
pub struct Node {
    folder: PathBuf,
    options: Vec<String>,
    agent_port: u16,
    etcd_port: u16,
    image: (String, Value),
    events: AsyncPull,
    agent: Option<Guard>,
    _services: Vec<Guard>,
}

impl Node {
    /// On the engine that these options name, with everything below `folder`.
    pub async fn start(folder: &Path, image: &Path, options: &[String]) -> Result<Self> {
        let [agent_port, etcd_port, peer_port, redis_port] = free_ports()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = spawn(
            folder,
            Command::new("etcd")
                .arg("--data-dir")
                .arg(folder.join("etcd"))
                .args([
                    "--unsafe-no-fsync",
                    "--log-level=error",
                    "--listen-client-urls",
                    &url(etcd_port),
                    "--advertise-client-urls",
                    &url(etcd_port),
                    "--listen-peer-urls",
                    &url(peer_port),
                    "--initial-advertise-peer-urls",
                    &url(peer_port),
                    "--initial-cluster",
                    &format!("default={}", url(peer_port)),
                ]),
        )?;
        let redis = spawn(
            folder,
            Command::new("redis-server").args([
                "--bind",
                "127.0.0.1",
                "--port",
                &redis_port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
            ]),
        )?;
        let events = AsyncPull::bind("127.0.0.1:0", NetConfig::default()).await?;
        let event_port = events.local_addr().context("bound")?.port();
        wait_for("etcd", || {
            std::net::TcpStream::connect(("127.0.0.1", etcd_port)).is_ok()
        })
        .await?;
        wait_for("redis", || {
            std::net::TcpStream::connect(("127.0.0.1", redis_port)).is_ok()
        })
        .await?;
        let mut client = etcd_client::Client::connect([url(etcd_port)], None).await?;
        for (key, value) in [
            (
                "nodes/manager/event_addr",
                format!("127.0.0.1:{event_port}"),
            ),
            ("nodes/redis", format!("127.0.0.1:{redis_port}")),
            ("nodes/manager", "i-bench".into()),
        ] {
            client
                .put(format!("/sorna/local/{key}"), value, None)
                .await?;
        }
        std::fs::create_dir_all(folder.join("scratches"))?;
        let image = import(folder, image, options)?;
        let mut node = Self {
            folder: folder.into(),
            options: options.to_vec(),
            agent_port,
            etcd_port,
            image,
            events,
            agent: None,
            _services: vec![etcd, redis],
        };
        node.restart().await?;
        Ok(node)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stops the daemon if it runs and starts it; the time from exec to the first heartbeat.
    pub async fn restart(&mut self) -> Result<Duration> {
        self.stop().await?;
        while self.events.try_recv().is_some() {}
        let begin = Instant::now();
        let mut command = Command::new(agent());
        command
            .arg("serve")
            .args(folders(&self.folder))
            .args(&self.options)
            .arg("--scratch-root")
            .arg(self.folder.join("scratches"))
            .args([
                "--etcd-addr",
                &format!("127.0.0.1:{}", self.etcd_port),
                "--agent-port",
                &self.agent_port.to_string(),
                "--agent-host-override",
                "127.0.0.1",
                "--container-port-range",
                "20000-21000",
                "--kernel-uid",
                "1000",
            ]);
        self.agent = Some(spawn(&self.folder, &mut command)?);
        loop {
            let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
            let event = event
                .context("no heartbeat within 20 s")?
                .context("the event socket is closed")?;
            if event
                .frames()
                .first()
                .is_some_and(|name| name.as_ref() == b"instance_heartbeat")
            {
                break;
            }
        }
        let time = begin.elapsed();
        let port = self.agent_port;
        wait_for("the agent's RPC port", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await?;
        Ok(time)
    }

    /// Ends the daemon and its kernels.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else {
            return Ok(());
        };
        let pid = rustix::process::Pid::from_child(&agent.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let mut waited = Duration::ZERO;
        while agent.0.try_wait()?.is_none() {
            ensure!(waited < Duration::from_secs(60), "the agent did not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
            waited += Duration::from_millis(20);
        }
        Ok(())
    }

    pub async fn rpc(&self) -> Result<Rpc> {
        Rpc::connect(self.agent_port).await
    }

    /// Arguments of `create_kernel` as the manager sends them.
    pub fn create_args(&self, kernel: &str) -> Vec<Value> {
        let (digest, labels) = &self.image;
        let registry = map(vec![
            ("name", "bench".into()),
            ("url", "http://127.0.0.1:1".into()),
        ]);
        let image = map(vec![
            ("registry", registry),
            ("digest", digest.as_str().into()),
            ("canonical", IMAGE.into()),
            ("labels", labels.clone()),
        ]);
        let config = map(vec![
            ("image", image),
            (
                "resource_slots",
                map(vec![("cpu", "0".into()), ("mem", "134217728".into())]),
            ),
            ("idle_timeout", 0.into()),
            ("mounts", Value::Array(Vec::new())),
            ("environ", Value::Map(Vec::new())),
        ]);
        vec![kernel.into(), config]
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("the agent runs")?.0.id())
    }

    pub fn rss_mib(&self) -> Result<f64> {
        Ok(status_kib(self.pid()?, "status", "VmRSS:")? / 1024.0)
    }

    /// CPU time of the daemon so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .context("stat")?
            .split(' ')
            .collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    }

    /// Private memory of each monitor.
    pub fn monitors(&self) -> Result<Series> {
        let mut series = Series::new("monitor_pss", "MiB");
        let run_dir = self.folder.join("run");
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("__monitor") && line.contains(&*run_dir.to_string_lossy()) {
                let private = ["Private_Dirty:", "Private_Clean:"]
                    .map(|key| status_kib(pid, "smaps_rollup", key));
                series.push(
                    (private[0].as_ref().map_or(0.0, |v| *v)
                        + private[1].as_ref().map_or(0.0, |v| *v))
                        / 1024.0,
                );
            }
        }
        Ok(series)
    }

    /// How long one sweep over all kernels' counters takes, as the agent's own library does it.
    pub async fn stats_sweep(&self) -> Result<Series> {
        let config = EngineConfig {
            state_dir: self.folder.join("state"),
            run_dir: self.folder.join("run"),
            monitor_exe: Some(agent()),
            ..EngineConfig::default()
        };
        let engine = backends::open(RuntimeKind::Youki, config).await?;
        let containers = engine.runtime.list().await?;
        let targets: Vec<Target> = containers
            .into_iter()
            .filter_map(|container| {
                let kernel = KernelId::parse(&container.id.0).ok()?;
                Some(Target {
                    kernel,
                    cgroup: container.cgroup?,
                    pid: container.pid,
                    interface: "eth".into(),
                })
            })
            .collect();
        ensure!(!targets.is_empty(), "no containers to sample");
        let mut collector = StatsCollector::default();
        let mut series = Series::ms("stats_sweep_100");
        for _ in 0..20 {
            let begin = Instant::now();
            collector.sweep(&targets, begin);
            series.push_ms(begin.elapsed());
        }
        Ok(series)
    }
}

/// The daemon's folders as options.
pub fn folders(folder: &Path) -> [PathBuf; 4] {
    [
        "--state-dir".into(),
        folder.join("state"),
        "--run-dir".into(),
        folder.join("run"),
    ]
}

/// The program under measurement.
pub fn agent() -> PathBuf {
    env!("CARGO_BIN_EXE_backendai-agent").into()
}

/// Imports the kernel image; its digest and labels.
fn import(folder: &Path, image: &Path, options: &[String]) -> Result<(String, Value)> {
    let flags = std::env::var("BACKENDAI_BENCH_IMAGE_FLAGS").unwrap_or_default();
    let output = Command::new(agent())
        .args(["image", "import"])
        .args(folders(folder))
        .args(options)
        .arg("--json")
        .arg(image)
        .arg(IMAGE)
        .args(flags.lines())
        .output()?;
    ensure!(
        output.status.success(),
        "import: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let info: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let digest = info["id"]
        .as_str()
        .context("the import tells the id")?
        .to_owned();
    let labels = info["labels"].as_object().cloned().unwrap_or_default();
    let labels = labels
        .into_iter()
        .map(|(k, v)| (k.into(), v.as_str().unwrap_or_default().into()))
        .collect();
    Ok((digest, Value::Map(labels)))
}

fn spawn(folder: &Path, command: &mut Command) -> Result<Guard> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("services.log"))?;
    let command = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    Ok(Guard(
        command.spawn().with_context(|| format!("{command:?}"))?,
    ))
}

async fn wait_for(what: &str, ready: impl Fn() -> bool) -> Result<()> {
    for _ in 0..400 {
        if ready() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!("{what} did not come up within 10 s")
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn status_kib(pid: u32, file: &str, key: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .with_context(|| format!("no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
