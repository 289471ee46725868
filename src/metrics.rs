//! What operators may know of the running agent: counts as plain text, and answers to health checks, over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::manager::Node;

/// Method names that are counted by themselves; further ones, which no agent has, share a line.
const METHODS_MAX: usize = 64;

/// Counts of RPC calls.
#[derive(Debug, Default)]
pub struct RpcCounts {
    methods: Mutex<BTreeMap<String, [u64; 2]>>,
    undecodable: AtomicU64,
}

impl RpcCounts {
    /// A call was answered.
    pub fn answered(&self, method: &str, failed: bool) {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = methods.get_mut(method) {
            counts[usize::from(failed)] += 1;
            return;
        }
        let plain = method
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let counted = plain && method.len() <= 64 && methods.len() < METHODS_MAX;
        let name = if counted { method } else { "other" };
        methods.entry(name.to_owned()).or_default()[usize::from(failed)] += 1;
    }

    /// A message was no call.
    pub fn undecodable(&self) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
    }
}

/// How the agent is doing.
pub struct Health {
    started: Instant,
    ready: AtomicBool,
    rpc: Arc<RpcCounts>,
    node: OnceLock<Arc<dyn Node>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ready: AtomicBool::new(false),
            rpc: Arc::default(),
            node: OnceLock::new(),
        }
    }
}

impl Health {
    /// The counts of RPC calls, for the server to fill.
    pub fn rpc(&self) -> Arc<RpcCounts> {
        self.rpc.clone()
    }

    /// The node is there.
    pub fn know(&self, node: Arc<dyn Node>) {
        // The node is made once in a process's life; a second one changes nothing.
        let _first = self.node.set(node);
    }

    /// Whether calls are served now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The metrics in Prometheus' text form.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut gauge = |name: &str, kind: &str, value: &dyn std::fmt::Display| {
            let written = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
            written.expect("writing to a String cannot fail");
        };
        let uptime = self.started.elapsed().as_secs();
        gauge("backendai_agent_uptime_seconds", "counter", &uptime);
        if let Some(node) = self.node.get() {
            let stats = node.stats();
            gauge("backendai_agent_kernels", "gauge", &stats.kernels.len());
            gauge(
                "backendai_agent_kernels_cpu_percent",
                "gauge",
                &stats.cpu_pct,
            );
            gauge(
                "backendai_agent_kernels_memory_bytes",
                "gauge",
                &stats.mem_cur_bytes,
            );
        }
        let undecodable = self.rpc.undecodable.load(Ordering::Relaxed);
        gauge(
            "backendai_agent_rpc_undecodable_total",
            "counter",
            &undecodable,
        );
        out.push_str("# TYPE backendai_agent_rpc_calls_total counter\n");
        let methods = self
            .rpc
            .methods
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (method, counts) in &*methods {
            for (outcome, count) in ["ok", "error"].iter().zip(counts) {
                let name = "backendai_agent_rpc_calls_total";
                let written = writeln!(
                    out,
                    "{name}{{method=\"{method}\",outcome=\"{outcome}\"}} {count}"
                );
                written.expect("writing to a String cannot fail");
            }
        }
        out
    }
}

/// Serves `/metrics`, `/healthz` (the process answers) and `/readyz` (calls are served) for ever.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let app = Router::new()
        .route(
            "/metrics",
            get(async |State(health): State<Arc<Health>>| health.metrics()),
        )
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(health);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the metrics server ended");
    }
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
