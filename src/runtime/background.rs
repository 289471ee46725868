//! What engines go on with after their callers were answered.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long the end of an agent waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until all of it is over, but not for ever: [`settle`](super::ContainerRuntime::settle) of an engine that has such work.
pub async fn settled(background: &TaskTracker, engine: &str) {
    background.close();
    if timeout(PATIENCE, background.wait()).await.is_err() {
        tracing::warn!("{engine} takes long to forget what has ended");
    }
}
