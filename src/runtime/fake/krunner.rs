//! Programs for the fake engine's containers: they play the krunner, without sockets.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use zmtp::Message;

use super::{Call, FakeRuntime, Program, Programs};
use crate::runtime::{ContainerId, ContainerSpec, ExecOutput, Result};

/// Makes the program of a container that is being started.
pub type RunnerScript =
    Arc<dyn Fn(RunnerSide) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What the program of a container sees.
#[derive(Debug)]
pub struct RunnerSide {
    /// Commands of the agent.
    pub ops: mpsc::Receiver<Message>,
    /// Output to the agent; kept while no agent is there, and blocking when there is much.
    pub records: mpsc::Sender<Message>,
    /// The engine, for instance to end the container.
    pub runtime: FakeRuntime,
    /// The container.
    pub id: ContainerId,
}

impl RunnerSide {
    /// Sends a record.
    pub async fn say(&self, kind: &str, data: impl Into<bytes::Bytes>) {
        let kind = bytes::Bytes::copy_from_slice(kind.as_bytes());
        // Nobody listens any more when the container was removed.
        let _ = self
            .records
            .send(Message::new(vec![kind, data.into()]))
            .await;
    }

    /// The next command as its type and text; `None` when there will be none.
    pub async fn op(&mut self) -> Option<(String, String)> {
        let message = self.ops.recv().await?;
        let text = |index: usize| {
            let frame = message.frames().get(index);
            frame.map_or_else(String::new, |it| String::from_utf8_lossy(it).into_owned())
        };
        Some((text(0), text(1)))
    }
}

/// The agent's end of the channels to a program.
#[derive(Clone, Debug)]
pub struct RunnerEnd {
    /// Commands to the program.
    pub ops: mpsc::Sender<Message>,
    /// Its output; whoever holds the lock is the connected peer.
    pub records: Arc<Mutex<mpsc::Receiver<Message>>>,
}

/// Programs that are one script.
pub(super) struct Scripted {
    script: RunnerScript,
    tasks: TaskTracker,
}

impl Scripted {
    pub(super) fn new(script: RunnerScript) -> Self {
        Self {
            script,
            tasks: TaskTracker::new(),
        }
    }
}

#[async_trait]
impl Programs for Scripted {
    async fn start(
        &self,
        engine: &FakeRuntime,
        container: &ContainerSpec,
        _call: Call,
    ) -> Result<Arc<dyn Program>> {
        let (ops, ops_receiver) = mpsc::channel(1024);
        let (records_sender, records) = mpsc::channel(64);
        let side = RunnerSide {
            ops: ops_receiver,
            records: records_sender,
            runtime: engine.clone(),
            id: container.id.clone(),
        };
        Ok(Arc::new(Running {
            end: RunnerEnd {
                ops,
                records: Arc::new(Mutex::new(records)),
            },
            _task: AbortOnDropHandle::new(self.tasks.spawn((self.script)(side))),
        }))
    }
}

/// A script that runs; every signal ends it, and what is run beside it prints its own command line.
struct Running {
    end: RunnerEnd,
    _task: AbortOnDropHandle<()>,
}

#[async_trait]
impl Program for Running {
    fn runner(&self) -> Option<RunnerEnd> {
        Some(self.end.clone())
    }

    fn signal(&self, _signal: i32) -> bool {
        false
    }

    async fn exec(&self, call: Call) -> Result<ExecOutput> {
        Ok(ExecOutput {
            code: 0,
            stdout: call.args.join(" ").into_bytes(),
            stderr: Vec::new(),
        })
    }
}

/// A program that takes commands and answers none.
#[must_use]
pub fn no_runner() -> RunnerScript {
    Arc::new(|mut side| Box::pin(async move { while side.op().await.is_some() {} }))
}

/// A program that understands a small language, one statement a line:
/// `out TEXT`, `err TEXT`, `record TYPE DATA`, `ask PROMPT` (waits for input and shows it), `sleep MS`,
/// `exit CODE` (ends the run), `hang` (until interrupted; the run then ends with −2) and `die CODE` (ends the
/// container). `code` and `exec` run it, the other batch steps end with 0, services answer `started`.
#[must_use]
pub fn tiny_runner() -> RunnerScript {
    Arc::new(|side| Box::pin(tiny(side)))
}

async fn tiny(mut side: RunnerSide) {
    while let Some((op, text)) = side.op().await {
        match op.as_str() {
            "code" | "exec" => {
                let code = program(&mut side, &text).await;
                side.say("finished", format!(r#"{{"exitCode": {code}}}"#))
                    .await;
            }
            "clean" => side.say("clean-finished", r#"{"exitCode": 0}"#).await,
            "build" => side.say("build-finished", r#"{"exitCode": 0}"#).await,
            "start-service" => side.say("service-result", r#"{"status": "started"}"#).await,
            "complete" => side.say("completion", r#"{"suggestions": []}"#).await,
            _ => {}
        }
    }
}

async fn program(side: &mut RunnerSide, text: &str) -> i64 {
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "out" => side.say("stdout", format!("{rest}\n")).await,
            "err" => side.say("stderr", format!("{rest}\n")).await,
            "record" => {
                let (kind, data) = rest.split_once(' ').unwrap_or((rest, ""));
                side.say(kind, data.to_owned()).await;
            }
            "ask" => {
                side.say("stdout", rest.to_owned()).await;
                side.say("waiting-input", r#"{"is_password": false}"#).await;
                let answer = wait_for(side, "input").await;
                side.say("stdout", format!("{answer}\n")).await;
            }
            "sleep" => {
                let time = Duration::from_millis(rest.parse().unwrap_or(0));
                tokio::time::sleep(time).await;
            }
            "exit" => return rest.parse().unwrap_or(0),
            "hang" => {
                wait_for(side, "interrupt").await;
                return -2;
            }
            "die" => side.runtime.exit(&side.id, rest.parse().unwrap_or(0)),
            _ => side.say("stderr", format!("no statement: {line}\n")).await,
        }
    }
    0
}

async fn wait_for(side: &mut RunnerSide, wanted: &str) -> String {
    while let Some((op, text)) = side.op().await {
        if op == wanted {
            return text;
        }
    }
    String::new()
}
