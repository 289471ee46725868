//! What one run does: creates the kernel, sends the code, shows what comes, and obeys signals.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::RunArgs;
use super::session::Session;
use super::terminal::Terminal;
use crate::agent::event::Event;
use crate::agent::request::{Execute, ExecuteMode, Reply, Request, RunResult, RunStatus};
use crate::agent::{Agent, AgentError};
use crate::manager::Node;

/// Exit status after `--timeout`, as of timeout(1).
const TIMED_OUT: u8 = 124;
/// Exit status after SIGINT and SIGTERM, as of a shell.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;
/// How long an interrupted program may take to end before its question is taken to be meant.
const DOUBT: Duration = Duration::from_secs(1);
/// Exit status when the kernel ended before the code did, or gave no status.
const LOST: u8 = 1;

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Interrupts the code; the second one ends the kernel.
    Interrupt,
    /// Ends the kernel.
    Terminate,
}

/// One run.
#[derive(Debug)]
pub struct Job<'a> {
    args: &'a RunArgs,
    session: &'a Session,
    terminal: Terminal,
    stops: Stops,
    began: Instant,
    quiet_so_far: bool,
}

/// What can end a run early.
#[derive(Debug)]
struct Stops {
    requests: mpsc::Receiver<Stop>,
    deadline: Option<tokio::time::Instant>,
    interrupted: bool,
}

/// What came first.
enum First<T> {
    /// The thing itself.
    Done(T),
    /// The code is to be interrupted.
    Interrupt,
    /// The run is over with this exit status.
    Over(u8),
}

impl Stops {
    /// Waits for something, or for a reason to stop.
    async fn or<T>(&mut self, thing: impl Future<Output = T>) -> First<T> {
        let deadline = self.deadline;
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = thing => First::Done(done),
            () = late => First::Over(TIMED_OUT),
            Some(stop) = self.requests.recv() => match stop {
                Stop::Terminate => First::Over(TERMINATED),
                Stop::Interrupt if self.interrupted => First::Over(INTERRUPTED),
                Stop::Interrupt => {
                    self.interrupted = true;
                    First::Interrupt
                }
            },
        }
    }
}

impl<'a> Job<'a> {
    /// A run that has not begun; times are counted from `began`.
    #[must_use]
    pub fn new(
        args: &'a RunArgs,
        session: &'a Session,
        terminal: Terminal,
        stops: mpsc::Receiver<Stop>,
        began: Instant,
    ) -> Self {
        let limit = args.timeout.map(Duration::from_secs);
        Self {
            args,
            session,
            terminal,
            stops: Stops {
                requests: stops,
                deadline: limit.and_then(|it| tokio::time::Instant::now().checked_add(it)),
                interrupted: false,
            },
            began,
            quiet_so_far: true,
        }
    }

    /// Runs it; gives the exit status.
    ///
    /// # Errors
    /// Whatever kept the code from being run.
    pub async fn run(&mut self, events: mpsc::UnboundedReceiver<Event>) -> anyhow::Result<u8> {
        if let Some(over) = self.create(events).await? {
            return Ok(over);
        }
        match self.mode().await? {
            First::Done(mode) => {
                let code = self.drive(mode).await?;
                if code != 0 && self.session.ran_out_of_memory().await {
                    let memory = &self.args.mem;
                    self.terminal.complain(&format!(
                        "a program was killed because the kernel ran out of its memory of {memory}; give more with --mem"
                    ));
                }
                Ok(code)
            }
            First::Over(code) => Ok(code),
            First::Interrupt => Ok(INTERRUPTED),
        }
    }

    /// Creates the kernel and tells about it; gives the exit status when the run is over before.
    async fn create(
        &mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<Option<u8>> {
        let session = self.session;
        let mut created = std::pin::pin!(session.create());
        loop {
            let next = async {
                tokio::select! {
                    created = &mut created => Err(created),
                    Some(event) = events.recv() => Ok(event),
                }
            };
            match self.stops.or(next).await {
                First::Over(code) => return Ok(Some(code)),
                First::Interrupt => return Ok(Some(INTERRUPTED)),
                First::Done(Ok(event)) => self.tell(&event),
                First::Done(Err(created)) => {
                    if !created? {
                        return Ok(Some(LOST));
                    }
                    let text = format!("kernel ready after {} ms", self.elapsed());
                    self.terminal.progress(&text);
                    return Ok(None);
                }
            }
        }
    }

    fn tell(&mut self, event: &Event) {
        if let Event::KernelPulling(_, image) = event {
            self.terminal.progress(&format!("pulling {image}"));
        }
    }

    fn elapsed(&self) -> u128 {
        self.began.elapsed().as_millis()
    }

    /// What is sent first; files are copied before.
    async fn mode(&mut self) -> anyhow::Result<First<ExecuteMode>> {
        if let Some(code) = &self.args.code {
            return Ok(First::Done(ExecuteMode::Query(code.clone())));
        }
        let mut names = Vec::new();
        for file in &self.args.files {
            names.push(self.session.upload(file).await?);
        }
        let given = |command: &Option<String>| command.clone().unwrap_or_default();
        Ok(match (&self.args.exec, &self.args.build, names.first()) {
            (None, None, None) => match self.stops.or(self.terminal.read_all()).await {
                First::Done(code) => First::Done(ExecuteMode::Query(code?)),
                First::Over(code) => First::Over(code),
                First::Interrupt => First::Interrupt,
            },
            (None, None, Some(first)) => First::Done(self.run_file(first)),
            (exec, build, _) => First::Done(ExecuteMode::Batch {
                clean: String::new(),
                build: given(build),
                exec: given(exec),
            }),
        })
    }

    /// A file is run by the image's interpreter where its language has one, else built and run by the runner's rules.
    fn run_file(&self, name: &str) -> ExecuteMode {
        let label = |name: &str| self.session.image.labels.get(name).map(String::as_str);
        let kind = label("ai.backend.runtime-type").unwrap_or("python");
        let program = label("ai.backend.runtime-path").filter(|path| !path.is_empty());
        let interpreter = interpreter(kind, name);
        let (build, exec) = match program.filter(|_| interpreter.is_some()).or(interpreter) {
            Some(program) => (String::new(), format!("{program} {}", quote(name))),
            None => ("*".to_owned(), "*".to_owned()),
        };
        ExecuteMode::Batch {
            clean: String::new(),
            build,
            exec,
        }
    }

    /// Goes through the run from mark to mark.
    async fn drive(&mut self, first: ExecuteMode) -> anyhow::Result<u8> {
        let run = uuid::Uuid::new_v4().simple().to_string();
        let mut mode = first;
        // A question that came after an interrupt: it may be from before, with nobody waiting for the answer.
        let mut doubtful: Option<RunResult> = None;
        loop {
            let call = Execute {
                kernel: self.session.kernel.clone(),
                run: Some(run.clone()),
                mode: std::mem::replace(&mut mode, ExecuteMode::Continue),
                flush_timeout: doubtful.as_ref().map(|_| DOUBT),
            };
            let mut call = std::pin::pin!(next_result(&self.session.agent, call));
            let mut interrupted = false;
            let result = loop {
                match self.stops.or(&mut call).await {
                    First::Over(code) => return Ok(code),
                    First::Interrupt => {
                        interrupted = true;
                        self.interrupt().await?;
                    }
                    First::Done(result) => break result?,
                }
            };
            let Some(result) = result else {
                self.terminal.complain("the kernel ended before the code");
                return Ok(LOST);
            };
            self.show(&result)?;
            let result = match (result.status, doubtful.take()) {
                (RunStatus::Continued, Some(question)) if result.console.is_empty() => question,
                (RunStatus::Continued, question) => {
                    doubtful = question;
                    continue;
                }
                (RunStatus::WaitingInput, _) if interrupted => {
                    doubtful = Some(RunResult {
                        console: Vec::new(),
                        ..result
                    });
                    continue;
                }
                _ => result,
            };
            match result.status {
                RunStatus::Finished => return Ok(self.status(result.exit_code)),
                RunStatus::WaitingInput => match self.answer(&result).await? {
                    First::Done(next) => mode = next,
                    First::Over(code) => return Ok(code),
                    First::Interrupt => self.interrupt().await?,
                },
                // The runner would skip the command and say 127.
                RunStatus::BuildFinished if result.exit_code.is_some_and(|it| it != 0) => {
                    return Ok(status(result.exit_code));
                }
                _ => {}
            }
        }
    }

    /// The exit status for the shell. Code that did not catch an interrupt fails like any other in the runner's eyes; a
    /// shell knows better.
    fn status(&self, code: Option<i64>) -> u8 {
        match status(code) {
            LOST if self.stops.interrupted => INTERRUPTED,
            other => other,
        }
    }

    async fn interrupt(&mut self) -> anyhow::Result<()> {
        let text = "interrupting the code; once more ends the kernel";
        self.terminal.progress(text);
        let kernel = self.session.kernel.clone();
        self.session
            .agent
            .handle(Request::InterruptKernel { kernel })
            .await?;
        Ok(())
    }

    fn show(&mut self, result: &RunResult) -> anyhow::Result<()> {
        if self.quiet_so_far && !result.console.is_empty() {
            self.quiet_so_far = false;
            let text = format!("first output after {} ms", self.elapsed());
            self.terminal.progress(&text);
        }
        self.terminal.show(&result.console)?;
        Ok(())
    }

    /// Reads the line that the code waits for. At the end of the input the code is interrupted: it would wait for ever.
    async fn answer(&mut self, result: &RunResult) -> anyhow::Result<First<ExecuteMode>> {
        let options = result.options.as_ref();
        let secret = options.and_then(|it| it.get("is_password"));
        let secret = secret.and_then(serde_json::Value::as_bool).unwrap_or(false);
        let line = self.stops.or(self.terminal.read_line(secret)).await;
        Ok(match line {
            First::Done(Ok(Some(line))) => First::Done(ExecuteMode::Input(line)),
            First::Done(Ok(None)) => {
                let text = "the code waits for input, but there is none";
                self.terminal.complain(text);
                First::Interrupt
            }
            First::Done(Err(error)) => return Err(error.into()),
            First::Interrupt => First::Interrupt,
            First::Over(code) => First::Over(code),
        })
    }
}

/// What comes next: any output at once, or what came within the call's time where it has one.
async fn next_result(agent: &Agent, call: Execute) -> Result<Option<RunResult>, AgentError> {
    if call.flush_timeout.is_none() {
        return agent.run_streaming(call).await;
    }
    Ok(
        match agent.handle(Request::Execute(Box::new(call))).await? {
            Reply::Run(result) => Some(*result),
            _ => None,
        },
    )
}

/// A run's exit code as a process's: a signal's negative number becomes 128 and the number.
fn status(code: Option<i64>) -> u8 {
    let Some(code) = code else {
        return LOST;
    };
    let code = if code < 0 { 128 - code } else { code };
    u8::try_from(code & 0xff).unwrap_or(LOST)
}

/// The program that runs a file of this language as it is.
fn interpreter(kind: &str, name: &str) -> Option<&'static str> {
    if Path::new(name).extension().is_some_and(|it| it == "sh") {
        return Some("/bin/sh");
    }
    match kind {
        "python" => Some("python3"),
        "lua" => Some("lua"),
        "nodejs" => Some("node"),
        "php" => Some("php"),
        "r" => Some("Rscript"),
        "julia" => Some("julia"),
        "octave" => Some("octave-cli"),
        _ => None,
    }
}

/// A word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codes_exit_status_is_the_processs() {
        for (code, expected) in [
            (Some(0), 0),
            (Some(3), 3),
            (Some(-2), 130),
            (Some(256), 0),
            (None, 1),
        ] {
            assert_eq!(status(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_file_name_is_one_word_for_the_shell() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
