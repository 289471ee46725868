//! The agent's side of the runner inside a kernel: commands down, output up (19.03 `kernel.py`, `KernelRunner`).
//!
//! The connection is made by the first call that needs it. A reader task takes records in and puts each where it
//! belongs; when a run's output is full it stops reading, so that the runner blocks and nothing is lost.

pub mod board;
pub mod console;
pub mod link;
mod memory;
pub mod requests;
pub mod run;
pub mod wire;
pub mod zmq;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::board::{Board, Place, ends_run};
use self::console::Console;
use self::link::{Connect, Endpoint, OpSink, RecordSource};
use self::requests::Requests;
use self::wire::{Op, Record};
use crate::agent::AgentError;
use crate::agent::request::{KernelId, ServicePort};

/// How long a command may wait for room in the queue to the runner.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// How long a service may take to start.
const SERVICE_LIMIT: Duration = Duration::from_secs(120);
/// How long completions may take; the manager waits as long.
const COMPLETION_LIMIT: Duration = Duration::from_secs(10);

/// One kernel's runner.
#[derive(Debug)]
pub struct Runner {
    kernel: KernelId,
    endpoint: Endpoint,
    connect: Arc<dyn Connect>,
    ops: OnceCell<Box<dyn OpSink>>,
    shared: Arc<Shared>,
    token: CancellationToken,
    tracker: TaskTracker,
}

/// What callers and the reader task share.
#[derive(Debug, Default)]
struct Shared {
    board: Board,
    services: Requests,
    completions: Requests,
}

impl Runner {
    /// A runner that is not connected yet. Cancelling `token` ends the connection.
    #[must_use]
    pub fn new(
        kernel: KernelId,
        endpoint: Endpoint,
        connect: Arc<dyn Connect>,
        token: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            kernel,
            endpoint,
            connect,
            ops: OnceCell::new(),
            shared: Arc::default(),
            token,
            tracker,
        }
    }

    /// Takes part in a run; see [`Board::enter`].
    pub fn enter(&self, run: &str, fresh: bool) -> Place<'_> {
        self.shared.board.enter(run, fresh)
    }

    /// Connects if need be; records arrive from then on.
    ///
    /// # Errors
    /// When no socket can be made.
    pub async fn open(&self) -> Result<(), AgentError> {
        self.ops().await.map(|_| ())
    }

    /// Sends commands, in order, together.
    ///
    /// # Errors
    /// When the runner has taken none for a long time.
    pub async fn send(&self, ops: impl IntoIterator<Item = Op>) -> Result<(), AgentError> {
        let sink = self.ops().await?;
        for op in ops {
            let sent = tokio::time::timeout(SEND_LIMIT, sink.send(op.encode()));
            match sent.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.problem(&error.to_string())),
                Err(_) => return Err(self.problem("takes no commands")),
            }
        }
        Ok(())
    }

    /// Interrupts what runs.
    ///
    /// # Errors
    /// As [`Runner::send`].
    pub async fn interrupt(&self) -> Result<(), AgentError> {
        self.send([Op::Interrupt]).await
    }

    /// Starts a service and gives the runner's own answer.
    ///
    /// # Errors
    /// As [`Runner::send`], and when there is no answer in two minutes.
    pub async fn start_service(
        &self,
        service: &ServicePort,
        options: Map<String, Value>,
    ) -> Result<Value, AgentError> {
        let answer = self.shared.services.expect(&service.name);
        self.send([Op::StartService {
            name: service.name.clone(),
            port: service.container_port,
            protocol: service.protocol.clone(),
            options,
        }])
        .await?;
        self.answer(answer, SERVICE_LIMIT, &format!("service {}", service.name))
            .await
    }

    /// Asks for completions and gives the runner's own answer.
    ///
    /// # Errors
    /// As [`Runner::send`], and when there is no answer in ten seconds.
    pub async fn complete(
        &self,
        code: String,
        options: Map<String, Value>,
    ) -> Result<Value, AgentError> {
        let answer = self.shared.completions.expect("");
        self.send([Op::Complete { code, options }]).await?;
        self.answer(answer, COMPLETION_LIMIT, "completion").await
    }

    async fn answer(
        &self,
        answer: oneshot::Receiver<Value>,
        limit: Duration,
        what: &str,
    ) -> Result<Value, AgentError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(self.problem("ended before it answered")),
            Err(_) => Err(AgentError::TimedOut(format!(
                "{what} of kernel {}",
                self.kernel
            ))),
        }
    }

    async fn ops(&self) -> Result<&dyn OpSink, AgentError> {
        let sink = self.ops.get_or_try_init(|| async {
            let link = self
                .connect
                .connect(&self.endpoint)
                .await
                .map_err(|source| AgentError::Host {
                    action: format!("connecting to the runner of kernel {}", self.kernel),
                    source,
                })?;
            let reader = Reader {
                shared: Arc::clone(&self.shared),
                console: Console::default(),
            };
            let token = self.token.clone();
            self.tracker.spawn(async move {
                // Cancellation closes the socket, wherever the reader stands.
                token.run_until_cancelled(reader.run(link.records)).await;
            });
            Ok::<_, AgentError>(link.ops)
        });
        Ok(sink.await?.as_ref())
    }

    fn problem(&self, problem: &str) -> AgentError {
        AgentError::Runner {
            kernel: self.kernel.clone(),
            problem: problem.to_owned(),
        }
    }
}

/// The task that takes records in.
struct Reader {
    shared: Arc<Shared>,
    console: Console,
}

impl Reader {
    async fn run(mut self, mut source: Box<dyn RecordSource>) {
        while let Some(message) = source.receive().await {
            match Record::decode(&message) {
                Record::Ignored => {}
                Record::Completion(value) => self.shared.completions.answer(value),
                Record::Service(value) => self.shared.services.answer(value),
                record => self.deliver(record).await,
            }
        }
    }

    /// Gives a record to the active run, waiting for room.
    async fn deliver(&mut self, mut record: Record) {
        loop {
            let Some(run) = self.shared.board.receiver() else {
                return self.console.discard(record);
            };
            let room = run.room.notified();
            let ends = ends_run(&record);
            match run.add(&mut self.console, record) {
                Ok(()) if ends => return self.shared.board.finished(&run),
                Ok(()) => return,
                Err(back) => record = back,
            }
            room.await;
        }
    }
}
