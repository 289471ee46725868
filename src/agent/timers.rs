//! What the node does again and again: images every 60 s, statistics every second, reconciliation every 10 s.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Agent, AgentError, recovery};
use crate::kernel::KernelHandle;
use crate::sys::memory;

/// Label that makes an image a kernel's.
const KERNELSPEC: &str = "ai.backend.kernelspec";

const IMAGES: Duration = Duration::from_secs(60);
const STATS: Duration = Duration::from_secs(1);
const RECONCILE: Duration = Duration::from_secs(10);

impl Agent {
    pub(super) fn spawn_timers(&self) {
        let stop = &self.parts.stop;
        let (agent, stopped) = (self.clone(), stop.clone());
        self.parts.tracker.spawn(async move {
            stopped.run_until_cancelled(agent.keep_images()).await;
        });
        let (agent, stopped) = (self.clone(), stop.clone());
        self.parts.tracker.spawn(async move {
            stopped.run_until_cancelled(agent.keep_reconciled()).await;
        });
        let (agent, stopped) = (self.clone(), stop.clone());
        self.parts.tracker.spawn(async move {
            stopped.run_until_cancelled(agent.keep_stats()).await;
        });
    }

    async fn keep_stats(&self) {
        let mut ticks = ticks(STATS);
        loop {
            ticks.tick().await;
            let kernels = self.parts.registry.all();
            let living = kernels.iter().filter_map(KernelHandle::running).collect();
            self.parts.stats.sweep(living).await;
        }
    }

    async fn keep_images(&self) {
        let mut ticks = ticks(IMAGES);
        loop {
            ticks.tick().await;
            if let Err(error) = self.refresh_images().await {
                tracing::warn!("cannot list images: {error}");
            }
        }
    }

    async fn keep_reconciled(&self) {
        let mut ticks = ticks(RECONCILE);
        loop {
            ticks.tick().await;
            if let Err(error) = recovery::reconcile(&self.parts).await {
                tracing::warn!("cannot compare kernels with containers: {error}");
            }
            memory::trim();
        }
    }

    /// Lists the kernel images: every name of an image with the label, and its config digest.
    pub(super) async fn refresh_images(&self) -> Result<(), AgentError> {
        let parts = &self.parts;
        let images = parts.within(parts.images.list(), "image list").await?;
        let kernels = images
            .into_iter()
            .filter(|image| image.labels.contains_key(KERNELSPEC));
        let named = kernels.flat_map(|image| {
            let id = image.id;
            let names = image.names.into_iter();
            names.map(move |name| (name, id.clone()))
        });
        let tagged = named.filter(|(name, _)| !name.ends_with("<none>"));
        *self.known.images.lock().expect("no panic while held") = tagged.collect();
        Ok(())
    }
}

/// One tick after each period; a slow run does not make later ones crowd.
fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
