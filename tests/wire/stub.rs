//! A scripted node: answers calls by a closure and remembers them.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use backendai_agent::agent::AgentError;
use backendai_agent::agent::event::{Event, EventSender};
use backendai_agent::agent::request::{KernelId, NodeState, Reply, Request};
use backendai_agent::manager::{Node, NodeStats};
use backendai_agent::resource::slot::SlotUnit;

type Script = Box<dyn Fn(&Request) -> Result<Reply, AgentError> + Send + Sync>;

/// The node. Calls of `get_logs` wait while the kernel's name is `slow`.
pub struct StubNode {
    script: Script,
    pub calls: Mutex<Vec<String>>,
    pub state: Mutex<NodeState>,
    pub stats: Mutex<NodeStats>,
    pub shutdowns: Mutex<Vec<bool>>,
    pub at_shutdown: Mutex<Option<(EventSender, Event)>>,
    pub hang_at_shutdown: Mutex<bool>,
    /// What `slow` calls wait for.
    pub gate: tokio::sync::Semaphore,
}

impl StubNode {
    pub fn new(
        script: impl Fn(&Request) -> Result<Reply, AgentError> + Send + Sync + 'static,
    ) -> Self {
        let mut state = NodeState::default();
        let cpu = (SlotUnit::Count, "4".to_owned());
        let mem = (SlotUnit::Bytes, "25276514304".to_owned());
        state.slots.insert("cpu".to_owned(), cpu);
        state.slots.insert("mem".to_owned(), mem);
        Self {
            script: Box::new(script),
            calls: Mutex::default(),
            state: Mutex::new(state),
            stats: Mutex::default(),
            shutdowns: Mutex::default(),
            at_shutdown: Mutex::default(),
            hang_at_shutdown: Mutex::default(),
            gate: tokio::sync::Semaphore::new(0),
        }
    }
}

pub fn kernel(id: &str) -> KernelId {
    KernelId::parse(id).unwrap()
}

#[async_trait]
impl Node for StubNode {
    async fn handle(&self, request: Request) -> Result<Reply, AgentError> {
        self.calls.lock().unwrap().push(format!("{request:?}"));
        if matches!(&request, Request::GetLogs { kernel } if kernel.as_str() == "slow") {
            self.gate.acquire().await.unwrap().forget();
        }
        (self.script)(&request)
    }

    fn state(&self) -> NodeState {
        self.state.lock().unwrap().clone()
    }

    fn stats(&self) -> NodeStats {
        self.stats.lock().unwrap().clone()
    }

    async fn shutdown(&self, destroy: bool) {
        if *self.hang_at_shutdown.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        self.shutdowns.lock().unwrap().push(destroy);
        if let Some((events, event)) = self.at_shutdown.lock().unwrap().take() {
            events.send(event).unwrap();
        }
    }
}

/// Long enough for anything on a busy machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the closure gives something.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
}
