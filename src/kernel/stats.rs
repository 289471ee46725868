//! The newest statistics of every kernel of the node.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::agent::request::KernelId;
use crate::stats::KernelStats;

/// Kernel to its newest sample.
#[derive(Debug, Default)]
pub struct StatsBook(Mutex<HashMap<KernelId, KernelStats>>);

impl StatsBook {
    /// The newest sample of one kernel.
    #[must_use]
    pub fn get(&self, kernel: &KernelId) -> Option<KernelStats> {
        self.0
            .lock()
            .expect("no panic while held")
            .get(kernel)
            .copied()
    }

    /// Replaces all samples.
    pub fn set(&self, samples: HashMap<KernelId, KernelStats>) {
        *self.0.lock().expect("no panic while held") = samples;
    }

    /// Every newest sample.
    #[must_use]
    pub fn all(&self) -> Vec<(KernelId, KernelStats)> {
        let samples = self.0.lock().expect("no panic while held");
        samples.iter().map(|(id, it)| (id.clone(), *it)).collect()
    }
}
