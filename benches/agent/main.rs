//! `make bench`: measures the daemon from outside, through its RPC socket, beside other ways to start a container.
//!
//! Writes `target/bench.json` and prints a table. Needs root, etcd, Redis and a kernel image archive in
//! `BACKENDAI_BENCH_IMAGE` (`scripts/bench.sh` provides all of them). Nothing here judges a figure.
#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own, told by its environment"
)]

#[path = "../../tests/daemons/mod.rs"]
mod daemons;
mod engines;
mod krunner;
mod node;
mod peers;
mod report;
mod rpc;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rmpv::Value;

use node::Node;
use report::{Report, Series};

/// Rounds of what takes tens of milliseconds.
const ROUNDS: usize = 30;
/// Kernels of the tests at scale.
const MANY: usize = 100;

fn main() -> Result<()> {
    // The peers' helper process runs libcontainer, which must not see a second thread.
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some(peers::HELPER) {
        return peers::helper_main(&args[2..]);
    }
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let image = std::env::var_os("BACKENDAI_BENCH_IMAGE")
        .map(PathBuf::from)
        .context("BACKENDAI_BENCH_IMAGE is not set")?;
    let only = std::env::var("BACKENDAI_BENCH_ONLY").unwrap_or_default();
    let wants = |name: &str| only.is_empty() || name.contains(&only);
    let folder = tempfile::tempdir()?;
    let mut report = Report::new();

    if wants("krunner") {
        krunner::measure(&mut report, folder.path())?;
    }
    let mut node = Node::start(folder.path(), &image, &[]).await?;
    if wants("startup") {
        report.add(startup(&mut node).await?);
    }
    if wants("ping") {
        pings(&node, &mut report).await?;
    }
    if wants("create") || wants("destroy") {
        let peers = peers::Peers::prepare(node.folder())?;
        engines::rounds(&node, "youki", &peers, &mut report).await?;
    }
    if wants("execute") {
        executes(&node, &mut report).await?;
    }
    if wants("100") || wants("agent") || wants("monitor") {
        node.restart().await?;
        scale(&node, &mut report).await?;
    }
    node.stop().await?;
    drop(node);
    for engine in engines::ENGINES {
        if wants(&format!("create.{}", engine.name)) {
            engines::measure(engine, &image, &mut report).await?;
        }
    }
    report.write()
}

async fn startup(node: &mut Node) -> Result<Series> {
    let mut series = Series::ms("startup");
    for _ in 0..10 {
        series.push_ms(node.restart().await?);
    }
    Ok(series)
}

async fn pings(node: &Node, report: &mut Report) -> Result<()> {
    let mut rpc = node.rpc().await?;
    let mut alone = Series::ms("ping");
    for _ in 0..2000 {
        let begin = Instant::now();
        rpc.call("ping", vec!["hello".into()]).await?;
        alone.push_ms(begin.elapsed());
    }
    report.add(alone);
    let mut rate = Series::new("ping_64", "calls/s");
    for _ in 0..10 {
        rate.push(rpc.flood("ping", vec!["hello".into()], 64, 20_000).await?);
    }
    report.add(rate);
    Ok(())
}

async fn executes(node: &Node, report: &mut Report) -> Result<()> {
    let mut rpc = node.rpc().await?;
    rpc.call("create_kernel", node.create_args("bench-execute"))
        .await?;
    rpc.execute("bench-execute", "print(1)").await?;
    let mut round_trip = Series::ms("execute");
    for _ in 0..200 {
        let begin = Instant::now();
        rpc.execute("bench-execute", "print(1)").await?;
        round_trip.push_ms(begin.elapsed());
    }
    report.add(round_trip);
    let mut throughput = Series::new("execute_throughput", "MiB/s");
    const MIB: usize = 64;
    let code = format!(
        "s = 'x' * 99999 + '\\n'\nfor _ in range({}): print(s, end='')",
        MIB * 1024 * 1024 / 100_000
    );
    for _ in 0..5 {
        let begin = Instant::now();
        let bytes = rpc.execute("bench-execute", &code).await?;
        #[allow(clippy::cast_precision_loss, reason = "a count of bytes below 2^52")]
        throughput.push(bytes as f64 / (1024.0 * 1024.0) / begin.elapsed().as_secs_f64());
    }
    report.add(throughput);
    rpc.call("destroy_kernel", vec!["bench-execute".into()])
        .await?;
    Ok(())
}

/// Memory and CPU with no kernel and with a hundred.
async fn scale(node: &Node, report: &mut Report) -> Result<()> {
    let mib = |name: &'static str, value: f64| Series::single(name, "MiB", value);
    tokio::time::sleep(Duration::from_secs(3)).await;
    report.add(mib("agent_rss_idle", node.rss_mib()?));
    let mut rpc = node.rpc().await?;
    for index in 0..MANY {
        rpc.call("create_kernel", node.create_args(&format!("many-{index}")))
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = node.cpu_time()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = node.cpu_time()?.saturating_sub(before);
    report.add(Series::single(
        "agent_cpu_100",
        "% of a core",
        used.as_secs_f64() * 10.0,
    ));
    report.add(mib("agent_rss_100", node.rss_mib()?));
    report.add(node.monitors()?);
    report.add(node.stats_sweep().await?);
    for index in 0..MANY {
        rpc.call("destroy_kernel", vec![Value::from(format!("many-{index}"))])
            .await?;
    }
    Ok(())
}
