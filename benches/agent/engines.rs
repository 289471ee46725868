//! Kernels on engines with a daemon, in turn with what the engine does by itself; and twenty at once on every engine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::daemons::{Kind, OwnDaemon};
use super::node::{IMAGE, Node};
use super::peers::at_once;
use super::report::{Report, Series};
use super::{ROUNDS, rpc};

/// Kernels that are created at once.
pub const AT_ONCE: usize = 20;
/// How often.
const TIMES: usize = 3;
/// Ports of a kernel of the image: the runner's two and those of its services.
const PORTS: u16 = 5;

/// An engine with a daemon.
pub struct Engine {
    pub name: &'static str,
    kind: Kind,
}

/// Those that are measured where they are installed.
pub const ENGINES: [Engine; 2] = [
    Engine {
        name: "containerd",
        kind: Kind::Containerd,
    },
    Engine {
        name: "docker",
        kind: Kind::Docker,
    },
];

/// Creates, first outputs and ends of kernels on one engine.
pub async fn measure(engine: Engine, image: &Path, report: &mut Report) -> Result<()> {
    let daemon = match OwnDaemon::start_here(engine.kind, &[]) {
        Ok(daemon) => daemon,
        Err(lack) => {
            eprintln!("{} is left out: {lack}", engine.name);
            return Ok(());
        }
    };
    let folder = tempfile::tempdir()?;
    let options = [
        "--runtime",
        engine.name,
        "--runtime-endpoint",
        &daemon.endpoint(),
    ]
    .map(str::to_owned);
    let mut node = Node::start(folder.path(), image, &options).await?;
    let peer = Peer::new(engine.kind, daemon.socket(), image)?;
    rounds(&node, engine.name, &peer, report).await?;
    node.stop().await
}

/// What an engine is measured beside.
pub trait Beside {
    /// Makes one container of each peer and removes it; adds the times.
    fn round(&self, create: &mut Series, destroy: &mut Series) -> Result<()>;

    /// As many containers of each peer at once as kernels are asked for.
    fn at_once(&self, many: &mut Series) -> Result<()>;
}

/// Creates, first outputs and ends of kernels, in turn with the peers; then twenty at once.
pub async fn rounds(
    node: &Node,
    engine: &str,
    peers: &impl Beside,
    report: &mut Report,
) -> Result<()> {
    let named = |what: &str| Series::ms(format!("{what}.{engine}"));
    let (mut create, mut output, mut destroy) =
        (named("create"), named("create_to_output"), named("destroy"));
    let mut rpc = node.rpc().await?;
    for round in 0..ROUNDS {
        let kernel = format!("bench-{round}");
        let begin = Instant::now();
        rpc.call("create_kernel", node.create_args(&kernel)).await?;
        create.push_ms(begin.elapsed());
        rpc.execute_until(&kernel, "print(1)", rpc::has_output)
            .await?;
        output.push_ms(begin.elapsed());
        let begin = Instant::now();
        rpc.call("destroy_kernel", vec![kernel.as_str().into()])
            .await?;
        destroy.push_ms(begin.elapsed());
        peers.round(&mut create, &mut destroy)?;
    }
    let mut many = many(node, engine, &create).await?;
    for _ in 0..TIMES {
        peers.at_once(&mut many)?;
    }
    for series in [create, output, destroy, many] {
        report.add(series);
    }
    Ok(())
}

/// Creations of twenty kernels at once, beside those of single ones.
async fn many(node: &Node, engine: &str, single: &Series) -> Result<Series> {
    let mut series = Series::ms(format!("create_20.{engine}"));
    series.set_peer("single", single);
    for time in 0..TIMES {
        let kernels: Vec<_> = (0..AT_ONCE).map(|i| format!("many-{time}-{i}")).collect();
        let creates = kernels.iter().map(|kernel| async move {
            let mut rpc = node.rpc().await?;
            let begin = Instant::now();
            rpc.call("create_kernel", node.create_args(kernel)).await?;
            Ok::<_, anyhow::Error>(begin.elapsed())
        });
        for created in futures_util::future::join_all(creates).await {
            series.push_ms(created?);
        }
        let mut rpc = node.rpc().await?;
        for kernel in &kernels {
            rpc.call("destroy_kernel", vec![kernel.as_str().into()])
                .await?;
        }
    }
    Ok(series)
}

/// The engine without the agent.
enum Peer {
    /// Its HTTP API: a container like a kernel's, created and started, then removed.
    Docker(PathBuf),
    /// `ctr run` with a bridge of the plug-ins of CNI, from create to delete.
    Ctr(PathBuf),
    /// Not to be had here.
    Absent,
}

impl Peer {
    fn new(kind: Kind, socket: PathBuf, image: &Path) -> Result<Self> {
        if kind == Kind::Docker {
            return Ok(Self::Docker(socket));
        }
        let peer = Self::Ctr(socket.clone());
        match import(&socket, image).and_then(|()| ctr_run(&socket, 0)) {
            Ok(()) => Ok(peer),
            Err(error) => {
                eprintln!("peer ctr is left out: {error:#}");
                Ok(Self::Absent)
            }
        }
    }
}

impl Beside for Peer {
    fn round(&self, create: &mut Series, destroy: &mut Series) -> Result<()> {
        match self {
            Self::Docker(socket) => {
                let begin = Instant::now();
                let id = docker_run(socket, 0)?;
                create.push_peer("docker", begin.elapsed());
                let begin = Instant::now();
                docker_remove(socket, &id)?;
                destroy.push_peer("docker", begin.elapsed());
            }
            Self::Ctr(socket) => {
                let begin = Instant::now();
                ctr_run(socket, 0)?;
                create.push_peer("ctr", begin.elapsed());
            }
            Self::Absent => {}
        }
        Ok(())
    }

    fn at_once(&self, series: &mut Series) -> Result<()> {
        match self {
            Self::Docker(socket) => {
                let ids = Mutex::new(Vec::new());
                let times = at_once(|n| {
                    let id = docker_run(socket, n)?;
                    ids.lock().expect("no panic while held").push(id);
                    Ok(())
                })?;
                series.push_peers("docker", times);
                for id in ids.into_inner().expect("no panic while held") {
                    docker_remove(socket, &id)?;
                }
            }
            Self::Ctr(socket) => series.push_peers("ctr", at_once(|n| ctr_run(socket, n))?),
            Self::Absent => {}
        }
        Ok(())
    }
}

fn docker_run(socket: &Path, n: usize) -> Result<String> {
    let made = api(socket, "POST", "/containers/create", Some(&container(n)))?;
    let id = made["Id"].as_str().context("docker gives an id")?;
    api(socket, "POST", &format!("/containers/{id}/start"), None)?;
    Ok(id.to_owned())
}

fn docker_remove(socket: &Path, id: &str) -> Result<()> {
    let path = format!("/containers/{id}?force=true");
    api(socket, "DELETE", &path, None).map(drop)
}

/// A container with as many ports as a kernel has.
fn container(n: usize) -> Value {
    let ports: Vec<u16> = (0..PORTS).map(|i| 2000 + i).collect();
    let all = |value: &dyn Fn(u16) -> Value| -> Value {
        let entries = ports
            .iter()
            .map(|port| (format!("{port}/tcp"), value(*port)));
        Value::Object(entries.collect())
    };
    let host = |port: u16| usize::from(port) + 20_000 + n * usize::from(PORTS);
    json!({
        "Image": IMAGE,
        "Entrypoint": ["sleep", "1000"],
        "ExposedPorts": all(&|_| json!({})),
        "HostConfig": {
            "Init": true,
            "PortBindings": all(&|port| json!([{"HostPort": host(port).to_string()}])),
        },
    })
}

/// One call of Docker's API.
fn api(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer of HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{method} {path}: {head} {body}");
    Ok(serde_json::from_str(body).unwrap_or_default())
}

/// Gives `ctr` the image under a name of its own, in a namespace of its own.
fn import(socket: &Path, image: &Path) -> Result<()> {
    let layout = tempfile::tempdir()?;
    let (rootfs, archive) = (
        layout.path().join("layer.tar"),
        layout.path().join("image.tar"),
    );
    std::fs::copy(image, &rootfs)?;
    let digest = Command::new("sha256sum").arg(&rootfs).output()?.stdout;
    let digest = String::from_utf8(digest)?;
    let digest = digest.split(' ').next().context("a digest")?;
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": {"Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(layout.path().join("config.json"), config.to_string())?;
    let manifest = json!([{
        "Config": "config.json", "RepoTags": ["bench/peer:latest"], "Layers": ["layer.tar"],
    }]);
    std::fs::write(layout.path().join("manifest.json"), manifest.to_string())?;
    let packed = Command::new("tar")
        .args(["-C"])
        .arg(layout.path())
        .args(["-cf"])
        .arg(&archive)
        .args(["manifest.json", "config.json", "layer.tar"])
        .status()?;
    ensure!(packed.success(), "tar failed");
    ctr(socket, &["images", "import", &archive.to_string_lossy()])
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn ctr_run(socket: &Path, n: usize) -> Result<()> {
    let (image, name) = ("docker.io/bench/peer:latest", format!("bench-peer-{n}"));
    ctr(socket, &["run", "--rm", "--cni", image, &name, "true"])
}

fn ctr(socket: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "bench"])
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("ctr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
