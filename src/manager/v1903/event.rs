//! Events for the 19.03 manager: three frames each, in a queue bounded in bytes that waits while the manager is away.

use std::time::Duration;

use bytes::Bytes;
use rmpv::Value;
use zmtp::Message;
use zmtp::net::{AsyncPush, NetConfig};

use crate::agent::event::Event;

/// Bytes of events that may wait.
const QUEUE: usize = 16 << 20;
/// How long what waits is still sent at the end. 19.03: 50 ms; the manager may just be coming back.
const LINGER: Duration = Duration::from_millis(500);

/// The name and arguments of an event. The manager must get `kernel_terminated` with exactly three arguments, and
/// always the same reason (Q5).
pub fn encode(event: &Event) -> (&'static str, Value) {
    let (name, args): (_, Vec<Value>) = match event {
        Event::KernelPreparing(kernel) => ("kernel_preparing", vec![kernel.as_str().into()]),
        Event::KernelPulling(kernel, image) => (
            "kernel_pulling",
            vec![kernel.as_str().into(), image.as_str().into()],
        ),
        Event::KernelCreating(kernel) => ("kernel_creating", vec![kernel.as_str().into()]),
        Event::KernelStarted(kernel) => ("kernel_started", vec![kernel.as_str().into()]),
        Event::KernelTerminated { kernel, .. } => (
            "kernel_terminated",
            vec![kernel.as_str().into(), "self-terminated".into(), Value::Nil],
        ),
    };
    (name, Value::Array(args))
}

/// The link that carries events to the manager.
pub struct EventLink {
    push: AsyncPush,
    agent: Bytes,
}

impl std::fmt::Debug for EventLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLink").finish_non_exhaustive()
    }
}

impl EventLink {
    /// A link to the manager at `host:port`, which need not be there yet; `agent` is the second frame of every event.
    pub fn connect(address: &str, agent: &str) -> Self {
        let config = NetConfig {
            socket: zmtp::Config {
                send_limit: QUEUE,
                ..zmtp::Config::default()
            },
            ..NetConfig::default()
        };
        Self {
            push: AsyncPush::connect(address, config),
            agent: Bytes::copy_from_slice(agent.as_bytes()),
        }
    }

    /// Queues an event. When the queue is full, waiting heartbeats go first; if that is not enough, this event is lost.
    pub fn send(&self, name: &'static str, args: &Value) {
        if let Err(error) = self.push.try_send(self.message(name, args)) {
            tracing::error!(name, %error, "an event is lost: the manager has been away too long");
        }
    }

    /// Queues a heartbeat in the place of those that wait still: only the newest tells the manager anything.
    pub fn send_heartbeat(&self, args: &Value) {
        let name = "instance_heartbeat";
        self.push
            .retain(|message| message.frames()[0] != name.as_bytes());
        if let Err(error) = self.push.try_send_droppable(self.message(name, args)) {
            tracing::debug!(%error, "a heartbeat is dropped");
        }
    }

    fn message(&self, name: &'static str, args: &Value) -> Message {
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, args).expect("a Vec takes all");
        Message::new(vec![
            Bytes::from_static(name.as_bytes()),
            self.agent.clone(),
            body.into(),
        ])
    }

    /// Why the manager cannot be reached at the moment, if so.
    pub fn problem(&self) -> Option<String> {
        let status = self.push.status();
        (status.ready_peers == 0).then(|| {
            status
                .last_error
                .unwrap_or_else(|| "not connected yet".to_owned())
        })
    }

    /// Sends what waits, for a short while, and closes the link.
    pub async fn close(&self) {
        let lost = self.push.close(LINGER).await;
        if lost > 0 {
            tracing::warn!(lost, "events are lost: the manager is away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::request::KernelId;

    #[tokio::test]
    async fn only_the_newest_heartbeat_waits() {
        // Nobody listens at this port.
        let link = EventLink::connect("127.0.0.1:1", "i-a");
        for number in 0..3 {
            link.send_heartbeat(&Value::Array(vec![number.into()]));
            link.send("kernel_started", &Value::Array(Vec::new()));
        }
        assert_eq!(link.push.queued(), 4);
        link.push
            .retain(|message| message.frames()[0] == b"instance_heartbeat"[..]);
        assert_eq!(link.push.queued(), 1);
    }

    #[test]
    fn a_termination_has_exactly_three_arguments() {
        let kernel = "01234567-89ab-cdef-0123-456789abcdef";
        let event = Event::KernelTerminated {
            kernel: KernelId::parse(kernel).expect("an id"),
            reason: "user-requested".to_owned(),
            stats: None,
        };
        let (name, args) = encode(&event);
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, &args).expect("a Vec takes all");
        let mut expected = b"\x93\xd9\x24".to_vec();
        expected.extend(kernel.as_bytes());
        expected.extend(b"\xafself-terminated\xc0");
        assert_eq!((name, body), ("kernel_terminated", expected));
    }
}
