//! The newest statistics of every kernel of the node.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::live::Live;
use crate::agent::request::KernelId;
use crate::stats::{KernelStats, StatsCollector, Sweep, Target};

/// How the network interfaces of containers are called.
const INTERFACE: &str = "eth";

/// Samples kernels off the async threads, and keeps the newest samples.
#[derive(Clone, Debug)]
pub struct StatsBook {
    collector: Arc<Mutex<StatsCollector>>,
    newest: Arc<Mutex<Sweep>>,
}

impl StatsBook {
    /// Nothing is sampled yet.
    #[must_use]
    pub fn new(collector: StatsCollector) -> Self {
        Self {
            collector: Arc::new(Mutex::new(collector)),
            newest: Arc::default(),
        }
    }

    /// The samples of the last sweep.
    #[must_use]
    pub fn newest(&self) -> Sweep {
        self.newest.lock().expect("no panic while held").clone()
    }

    /// Samples all living kernels.
    pub async fn sweep(&self, living: Vec<Arc<Live>>) {
        let targets: Vec<Target> = living.iter().filter_map(|live| target(live)).collect();
        let newest = Arc::clone(&self.newest);
        self.collecting(move |collector| {
            let sweep = collector.sweep(&targets, Instant::now());
            *newest.lock().expect("no panic while held") = sweep;
        })
        .await;
    }

    /// Samples a kernel that has just ended, while its cgroup is still there.
    pub async fn last(&self, live: &Live) {
        if let Some(target) = target(live) {
            self.collecting(move |collector| {
                collector.sample(&target);
            })
            .await;
        }
    }

    /// Gives the last sample of a kernel that is over, and forgets the kernel.
    pub async fn take(&self, kernel: KernelId) -> Option<KernelStats> {
        self.collecting(move |collector| collector.take(&kernel))
            .await
    }

    /// A sample is a few reads of files in memory; a sweep is one for each kernel.
    async fn collecting<T: Default + Send + 'static>(
        &self,
        act: impl FnOnce(&mut StatsCollector) -> T + Send + 'static,
    ) -> T {
        let collector = Arc::clone(&self.collector);
        let sampled = tokio::task::spawn_blocking(move || {
            act(&mut collector.lock().expect("no panic while held"))
        });
        sampled.await.unwrap_or_default()
    }
}

fn target(live: &Live) -> Option<Target> {
    Some(Target {
        kernel: live.kernel.clone(),
        cgroup: live.cgroup.clone()?,
        pid: live.pid,
        interface: INTERFACE.to_owned(),
    })
}
