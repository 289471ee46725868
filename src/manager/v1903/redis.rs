//! Statistics for the 19.03 manager in Redis, database 0: a hash for the node and one for each kernel. An outage is
//! waited out; nothing else waits for Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::python;
use crate::agent::request::KernelId;
use crate::manager::{Node, NodeStats};
use crate::stats::KernelStats;

/// How long a connection may take (19.03: 3 s).
const CONNECT: Duration = Duration::from_secs(3);
/// How long one write may take.
const WRITE: Duration = Duration::from_secs(1);
/// After a failed write, last statistics are not tried again for this long: events must not pile up behind them.
const REST: Duration = Duration::from_secs(5);
/// How long the hashes live without news, ms.
const EXPIRY_MS: i64 = 30_000;
/// Kernels in one pipeline.
const BATCH: usize = 128;

/// Redis cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("redis at {address}: {reason}{}", self.remedy())]
pub struct RedisUnusable {
    /// `host:port`.
    address: String,
    /// Why.
    reason: RedisError,
}

impl RedisUnusable {
    fn remedy(&self) -> &'static str {
        let text = self.reason.to_string();
        if text.contains("WRONGPASS") || text.contains("NOAUTH") || text.contains("assword") {
            "; check the etcd key nodes/redis/password"
        } else {
            ""
        }
    }
}

/// Writes statistics.
#[derive(Clone)]
pub struct StatsWriter {
    connection: ConnectionManager,
    agent: String,
    started: Instant,
    /// Milliseconds after `started` at which the last write failed, plus one; 0 is never.
    failed: Arc<AtomicU64>,
}

impl std::fmt::Debug for StatsWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatsWriter").finish_non_exhaustive()
    }
}

impl StatsWriter {
    /// Connects and makes sure that Redis serves us.
    ///
    /// # Errors
    /// [`RedisUnusable`]: unreachable, or the password is wrong.
    pub async fn connect(
        (host, port): &(String, u16),
        password: Option<&str>,
        agent: &str,
    ) -> Result<Self, RedisUnusable> {
        let unusable = |reason| RedisUnusable {
            address: crate::etcd::join_host_port(host, *port),
            reason,
        };
        let open = async {
            let mut settings = RedisConnectionInfo::default();
            if let Some(password) = password {
                settings = settings.set_password(password);
            }
            let info = ConnectionAddr::Tcp(host.clone(), *port).into_connection_info()?;
            let client = Client::open(info.set_redis_settings(settings))?;
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(CONNECT))
                .set_number_of_retries(1);
            let mut connection = ConnectionManager::new_with_config(client, config).await?;
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await?;
            Ok(connection)
        };
        let connection = open.await.map_err(unusable)?;
        Ok(Self {
            connection,
            agent: agent.to_owned(),
            started: Instant::now(),
            failed: Arc::default(),
        })
    }

    /// Writes the node's hash every 2 s and the kernels' every second until `stop`.
    pub async fn run(self, node: Arc<dyn Node>, stop: CancellationToken) {
        let mut timer = tokio::time::interval(Duration::from_secs(1));
        timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut with_node = true;
        let mut well = true;
        while stop.run_until_cancelled(timer.tick()).await.is_some() {
            let stats = node.stats();
            let write = self.write_all(&stats, with_node);
            match stop.run_until_cancelled(write).await {
                None => return,
                Some(Ok(())) if !well => {
                    well = true;
                    tracing::info!("redis is back");
                }
                Some(Err(problem)) if well => {
                    well = false;
                    tracing::warn!(problem, "statistics cannot be written to redis");
                }
                Some(_) => {}
            }
            with_node = !with_node;
        }
    }

    async fn write_all(&self, stats: &NodeStats, with_node: bool) -> Result<(), String> {
        if with_node {
            let mut pipe = redis::pipe();
            put_node(&mut pipe, &self.agent, stats);
            self.write(&pipe).await?;
        }
        for batch in stats.kernels.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for (kernel, stats) in batch {
                put_kernel(&mut pipe, kernel, stats);
            }
            self.write(&pipe).await?;
        }
        Ok(())
    }

    /// Writes the last statistics of a kernel, within a second or not at all.
    pub async fn write_last(&self, kernel: &KernelId, stats: &KernelStats) {
        let failed = self.failed.load(Ordering::Relaxed);
        let rested = u128::from(failed) + REST.as_millis();
        if failed > 0 && self.started.elapsed().as_millis() < rested {
            return;
        }
        let mut pipe = redis::pipe();
        put_kernel(&mut pipe, kernel, stats);
        if let Err(problem) = self.write(&pipe).await {
            tracing::warn!(%kernel, problem, "its last statistics are not in redis");
        }
    }

    async fn write(&self, pipe: &Pipeline) -> Result<(), String> {
        let mut connection = self.connection.clone();
        let write = pipe.query_async::<()>(&mut connection);
        let outcome = match tokio::time::timeout(WRITE, write).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_late) => Err("no answer within a second".to_owned()),
        };
        let mark = match &outcome {
            Ok(()) => 0,
            Err(_) => u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1,
        };
        self.failed.store(mark, Ordering::Relaxed);
        outcome
    }
}

fn put_node(pipe: &mut Pipeline, agent: &str, stats: &NodeStats) {
    let percent = (stats.cpu_pct * 100.0).round() / 100.0;
    pipe.cmd("HMSET")
        .arg(agent)
        .arg("cpu_pct")
        .arg(python::float(percent))
        .arg("mem_cur_bytes")
        .arg(stats.mem_cur_bytes)
        .ignore();
    pipe.cmd("PEXPIRE").arg(agent).arg(EXPIRY_MS).ignore();
}

fn put_kernel(pipe: &mut Pipeline, kernel: &KernelId, stats: &KernelStats) {
    let command = pipe.cmd("HMSET").arg(kernel.as_str());
    for (field, value) in fields(stats) {
        command.arg(field).arg(value);
    }
    command.ignore();
    pipe.cmd("PEXPIRE")
        .arg(kernel.as_str())
        .arg(EXPIRY_MS)
        .ignore();
}

/// The twelve fields in their order; numbers as Python writes them.
fn fields(stats: &KernelStats) -> [(&'static str, String); 12] {
    [
        ("precpu_used", python::float(stats.precpu_used)),
        ("cpu_used", python::float(stats.cpu_used)),
        (
            "precpu_system_used",
            python::float(stats.precpu_system_used),
        ),
        ("cpu_system_used", python::float(stats.cpu_system_used)),
        ("mem_max_bytes", stats.mem_max_bytes.to_string()),
        ("mem_cur_bytes", stats.mem_cur_bytes.to_string()),
        ("net_rx_bytes", stats.net_rx_bytes.to_string()),
        ("net_tx_bytes", stats.net_tx_bytes.to_string()),
        ("io_read_bytes", stats.io_read_bytes.to_string()),
        ("io_write_bytes", stats.io_write_bytes.to_string()),
        ("io_max_scratch_size", stats.io_max_scratch_size.to_string()),
        ("io_cur_scratch_size", stats.io_cur_scratch_size.to_string()),
    ]
}
