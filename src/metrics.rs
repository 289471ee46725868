//! What operators may know of the running agent: counts, and an HTTP server for them and for health checks.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of RPC calls.
#[derive(Debug, Default)]
pub struct RpcCounts {
    methods: Mutex<BTreeMap<String, [u64; 2]>>,
    undecodable: AtomicU64,
}

/// Method names that are counted by themselves; unknown ones share a line.
const METHODS_MAX: usize = 64;

impl RpcCounts {
    /// A call was answered.
    pub fn answered(&self, method: &str, failed: bool) {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = methods.get_mut(method) {
            counts[usize::from(failed)] += 1;
            return;
        }
        let name = if methods.len() < METHODS_MAX {
            method
        } else {
            "other"
        };
        methods.entry(name.to_owned()).or_default()[usize::from(failed)] += 1;
    }

    /// A message was no call.
    pub fn undecodable(&self) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
    }
}
