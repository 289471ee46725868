//! Figures, their percentiles, the table and `target/bench.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::{Value, json};

/// One measured figure and the peers measured in turn with it.
#[derive(Debug)]
pub struct Series {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
    peers: BTreeMap<&'static str, Vec<f64>>,
}

impl Series {
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            values: Vec::new(),
            peers: BTreeMap::new(),
        }
    }

    pub fn ms(name: impl Into<String>) -> Self {
        Self::new(name, "ms")
    }

    pub fn single(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            values: vec![value],
            ..Self::new(name, unit)
        }
    }

    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    pub fn push_ms(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    /// Takes what another series measured for a peer.
    pub fn set_peer(&mut self, peer: &'static str, other: &Self) {
        self.peers.insert(peer, other.values.clone());
    }

    pub fn push_peer(&mut self, peer: &'static str, time: Duration) {
        self.peers
            .entry(peer)
            .or_default()
            .push(time.as_secs_f64() * 1e3);
    }

    pub fn push_peers(&mut self, peer: &'static str, times: Vec<Duration>) {
        for time in times {
            self.push_peer(peer, time);
        }
    }
}

/// All figures of one run.
#[derive(Debug)]
pub struct Report(Vec<Series>);

impl Report {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn add(&mut self, series: Series) {
        eprintln!(
            "{:24} {:>10.2} {}",
            series.name,
            percentile(&series.values, 50),
            series.unit
        );
        self.0.push(series);
    }

    /// Writes the file and prints the table.
    pub fn write(&self) -> Result<()> {
        let mut table = Table::new();
        table.set_header(["name", "unit", "n", "p50", "p95", "max", "peers (p50/p95)"]);
        let mut results = Vec::new();
        for series in &self.0 {
            let numbers = [50, 95, 100].map(|p| percentile(&series.values, p));
            let peers: Vec<String> = series
                .peers
                .iter()
                .map(|(name, values)| {
                    let [p50, p95] = [50, 95].map(|p| percentile(values, p));
                    format!("{name} {p50:.1}/{p95:.1}")
                })
                .collect();
            let mut row = vec![
                series.name.clone(),
                series.unit.to_owned(),
                series.values.len().to_string(),
            ];
            row.extend(numbers.map(|n| format!("{n:.2}")));
            row.push(peers.join(", "));
            table.add_row(row);
            results.push(entry(series));
        }
        println!("{table}");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench.json");
        let all = json!({ "machine": machine(), "commit": commit(), "results": results });
        std::fs::write(&path, serde_json::to_string_pretty(&all)?)
            .with_context(|| path.display().to_string())
    }
}

fn entry(series: &Series) -> Value {
    let numbers = |values: &[f64]| json!({ "p50": percentile(values, 50), "p95": percentile(values, 95), "max": percentile(values, 100) });
    let mut entry = numbers(&series.values);
    entry["name"] = series.name.clone().into();
    entry["unit"] = series.unit.into();
    entry["n"] = series.values.len().into();
    let peers: serde_json::Map<String, Value> = series
        .peers
        .iter()
        .map(|(name, values)| ((*name).to_owned(), numbers(values)))
        .collect();
    entry["peers"] = peers.into();
    entry
}

/// The nearest-rank percentile; 0 of nothing.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(": ").nth(1).map(str::to_owned));
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "model": model,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": read("/proc/loadavg").split(' ').next(),
    })
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    String::from_utf8(output.stdout)
        .ok()
        .map(|text| text.trim().to_owned())
}
