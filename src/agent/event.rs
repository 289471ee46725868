//! What the node tells the manager without being asked. The front-end of each generation gives them their wire form.

use super::request::KernelId;
use crate::stats::KernelStats;

/// Something that happened on this node.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A creation began.
    KernelPreparing(KernelId),
    /// Its image, the second field, is being pulled.
    KernelPulling(KernelId, String),
    /// Its image is there.
    KernelCreating(KernelId),
    /// Its container runs.
    KernelStarted(KernelId),
    /// It is over and everything it held is free.
    KernelTerminated {
        /// The kernel.
        kernel: KernelId,
        /// Why, in the agent's words (`user-requested`, `self-terminated`, `idle-timeout`, …).
        reason: String,
        /// Its last statistics; to be published before the event.
        stats: Option<KernelStats>,
    },
}

/// Where events go. The receiver must take them at once and do its own bounded queueing.
pub type EventSender = tokio::sync::mpsc::UnboundedSender<Event>;
