//! What `remove` leaves to containerd: a snapshot's folder goes when the daemon next collects what nothing refers to.
//!
//! Seen with 1.6.20; the source of 2.4 reads the same: a removal that comes while folders of an earlier collection are being deleted
//! starts none of its own, so the last of many kernels could leave its folder until somebody changed anything in containerd. So a collection is
//! asked for a while after removals, or at the agent's end; one for all of them, as it looks at everything that containerd has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;

/// How long removals are gathered.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Collector {
    client: Arc<Client>,
    /// A collection will begin, and has not.
    asked: Arc<AtomicBool>,
    /// Nothing is gathered any more.
    hurry: CancellationToken,
}

impl Collector {
    pub fn new(client: Arc<Client>) -> Self {
        Self {
            client,
            asked: Arc::default(),
            hurry: CancellationToken::new(),
        }
    }

    /// What is asked for begins at once, now and later.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Has containerd collect, later.
    pub fn soon(&self, tasks: &TaskTracker) {
        if self.asked.swap(true, Ordering::SeqCst) {
            return;
        }
        let (client, asked) = (Arc::clone(&self.client), Arc::clone(&self.asked));
        let hurry = self.hurry.clone();
        tasks.spawn(async move {
            let _hurried = hurry.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            asked.store(false, Ordering::SeqCst);
            // A daemon that is away collects when it starts.
            if let Err(status) = client.collect().await {
                tracing::debug!("having containerd collect: {}", status.message());
            }
        });
    }
}
