//! Runs: one at a time, in the order of their ops; each ends with exactly one end record.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{MOST_EARLY_INPUT, NUDGES, Runner};
use crate::command::{Command, StartError};
use crate::interpreter::{Event, Interpreter};
use crate::language::Query;
use crate::log;
use crate::plan::{self, CANNOT_RUN, Phase, Place, Plan, QueryFile};
use crate::sys::load;
use crate::sys::process::Pid;
use crate::wire::Record;

/// An op that waits for its turn.
#[derive(Debug)]
pub(super) enum Job {
    /// `clean`, `build`, `exec`
    Batch(Phase, String),
    /// `code`
    Query(String),
}

/// What runs now.
#[derive(Debug)]
pub(super) enum Current {
    /// Code in the Python interpreter.
    Query {
        /// User code has begun: SIGINT would meet it.
        begun: bool,
        /// An interrupt came before that.
        interrupted: bool,
        /// It waits for a line.
        asks: bool,
    },
    /// Programs.
    Steps(Steps),
}

/// Programs, one after the other, up to the first that fails.
#[derive(Debug)]
pub(super) struct Steps {
    /// `None`: a query.
    phase: Option<Phase>,
    left: VecDeque<Vec<OsString>>,
    pub(super) command: Option<Command>,
    /// Deleted at the end.
    folder: Option<PathBuf>,
}

impl Steps {
    /// Sends a signal to what runs.
    pub(super) fn signal(&self, signal: i32) {
        if let Some(command) = &self.command {
            command.signal(signal);
        }
    }
}

impl Runner {
    /// Ends what has ended and begins what is next, as far as no waiting is needed.
    pub(super) fn advance(&mut self) {
        self.bury_interpreter();
        loop {
            match &self.current {
                None => match self.jobs.pop_front() {
                    Some(_) if self.stop_by.is_some() => return,
                    Some(job) => self.begin(job),
                    None => return,
                },
                Some(Current::Query { .. }) => return,
                Some(Current::Steps(steps)) => {
                    match steps.command.as_ref().and_then(Command::result) {
                        Some(code) => self.step_ended(code),
                        None => return,
                    }
                }
            }
        }
    }

    fn begin(&mut self, job: Job) {
        match job {
            Job::Batch(Phase::Exec, _) if std::mem::take(&mut self.build_failed) => {
                self.finish(Some(Phase::Exec), CANNOT_RUN)
            }
            Job::Batch(phase, command) => {
                let plan = plan::batch(phase, &command, &self.place());
                self.carry_out(Some(phase), plan, None);
            }
            Job::Query(code) => match &self.settings.language.query {
                Query::Python => self.begin_query(&code),
                Query::File {
                    suffix,
                    prefix,
                    steps,
                } => self.begin_file_query(suffix, &format!("{prefix}{code}"), steps),
                Query::Unavailable => {
                    let plan = Plan::Done(
                        CANNOT_RUN,
                        Some("this kind of kernel has no query mode".to_owned()),
                    );
                    self.carry_out(None, plan, None);
                }
            },
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            language: self.settings.language,
            runtime: &self.settings.runtime,
            folder: &self.settings.folder,
        }
    }

    fn carry_out(&mut self, phase: Option<Phase>, plan: Plan, folder: Option<PathBuf>) {
        match plan {
            Plan::Done(code, reason) => {
                if let Some(reason) = reason {
                    self.send(Record::note(&reason));
                }
                self.finish(phase, code);
            }
            Plan::Run(steps) => {
                self.current = Some(Current::Steps(Steps {
                    phase,
                    left: steps.into(),
                    command: None,
                    folder,
                }));
                self.next_step();
            }
        }
    }

    fn begin_query(&mut self, code: &str) {
        if self.interpreter.is_none() {
            self.start_interpreter();
        }
        let Some(interpreter) = &mut self.interpreter else {
            let runtime = self.settings.runtime.display();
            let reason =
                format!("no Python in this image: neither {runtime} nor python3 or python on PATH");
            return self.carry_out(None, Plan::Done(CANNOT_RUN, Some(reason)), None);
        };
        interpreter.run(code);
        self.current = Some(Current::Query {
            begun: false,
            interrupted: false,
            asks: false,
        });
    }

    fn begin_file_query(&mut self, suffix: &str, code: &str, steps: &[&[&str]]) {
        let number = self.next_generation();
        let folder = self
            .settings
            .folder
            .join(format!(".krunner-query-{number}"));
        let class = plan::java_class(code);
        let query = QueryFile {
            file: folder.join(format!("{class}{suffix}")),
            folder,
            class,
        };
        // One that a killed runner left behind.
        let _absent = std::fs::remove_dir_all(&query.folder);
        let written =
            std::fs::create_dir(&query.folder).and_then(|()| std::fs::write(&query.file, code));
        let plan = match written {
            Ok(()) => Plan::Run(plan::steps(steps, &self.place(), Some(&query))),
            Err(error) => Plan::Done(
                -1,
                Some(format!("cannot write {}: {error}", query.file.display())),
            ),
        };
        self.carry_out(None, plan, Some(query.folder));
    }

    fn next_step(&mut self) {
        let generation = self.next_generation();
        let python_dir = self.python_dir();
        let environ = self.settings.environ.for_batch(
            python_dir.as_deref(),
            self.input.port(),
            self.input.path(),
        );
        let Some(Current::Steps(steps)) = &mut self.current else {
            return;
        };
        let Some(words) = steps.left.pop_front() else {
            return;
        };
        let name = words
            .first()
            .map(|word| word.display().to_string())
            .unwrap_or_default();
        match Command::start(&words, &environ, &self.settings.folder, generation) {
            Ok(command) => steps.command = Some(command),
            Err(StartError::Missing) => {
                self.send(Record::note(&format!("{name}: not found in this image")));
                self.finish_steps(CANNOT_RUN);
            }
            Err(StartError::System(error)) => {
                self.send(Record::note(&format!("{name} cannot be started: {error}")));
                self.finish_steps(-1);
            }
        }
    }

    fn step_ended(&mut self, code: i32) {
        let Some(Current::Steps(steps)) = &mut self.current else {
            return;
        };
        steps.command = None;
        if code != 0 || steps.left.is_empty() {
            self.finish_steps(code);
        } else {
            self.next_step();
        }
    }

    fn finish_steps(&mut self, code: i32) {
        if let Some(Current::Steps(steps)) = self.current.take() {
            if let Some(folder) = steps.folder {
                let _left_behind = std::fs::remove_dir_all(folder);
            }
            self.finish(steps.phase, code);
        }
    }

    fn finish(&mut self, phase: Option<Phase>, code: i32) {
        if phase == Some(Phase::Build) {
            self.build_failed = code != 0;
        }
        self.current = None;
        self.nudge = None;
        self.early_input.clear();
        self.input.clear();
        self.send(Record::Finished(phase, code));
    }

    /// The end of a query, in the exit code profile that the kernel was started with.
    pub(super) fn finish_query(&mut self, code: i32) {
        self.finish(
            None,
            if self.settings.queries_exit_with_zero {
                0
            } else {
                code
            },
        );
    }

    pub(super) fn interrupt(&mut self) {
        // What came before the interrupt has its turn before it.
        self.advance();
        match &mut self.current {
            None => {}
            Some(Current::Steps(steps)) => steps.signal(libc::SIGINT),
            Some(Current::Query { begun: true, .. }) => {
                if let Some(interpreter) = &self.interpreter {
                    interpreter.signal(libc::SIGINT);
                    self.nudge = Some((Instant::now() + Duration::from_millis(NUDGES[0]), 0));
                }
            }
            Some(Current::Query { interrupted, .. }) => *interrupted = true,
        }
    }

    /// Nudges the interrupted interpreter, if it is time, until its code has ended.
    pub(super) fn nudge_interpreter(&mut self) {
        let Some((time, count)) = self.nudge else {
            return;
        };
        if time > Instant::now() {
            return;
        }
        if let Some(interpreter) = &self.interpreter {
            interpreter.nudge();
        }
        let next = NUDGES.get(count + 1);
        self.nudge =
            next.map(|millis| (Instant::now() + Duration::from_millis(*millis), count + 1));
    }

    /// Something that the interpreter says about a run.
    pub(super) fn take_event(&mut self, event: Event) {
        match event {
            Event::Record(record) => self.send(record),
            Event::Ready => {
                if let Some(interpreter) = &mut self.interpreter {
                    interpreter.ready = true;
                }
            }
            Event::Started => {
                if let Some(Current::Query {
                    begun, interrupted, ..
                }) = &mut self.current
                {
                    *begun = true;
                    if std::mem::take(interrupted) {
                        self.interrupt();
                    }
                }
            }
            Event::Asks(password) => {
                self.drain_interpreter_output();
                if let Some(Current::Query { asks, .. }) = &mut self.current {
                    *asks = true;
                }
                self.send(Record::QueryWaits(password));
                self.use_early_input();
            }
            Event::Finished(code) => {
                self.drain_interpreter_output();
                if matches!(self.current, Some(Current::Query { .. })) {
                    self.finish_query(code);
                }
            }
        }
    }

    pub(super) fn take_input(&mut self, text: String) {
        if self.early_input.len() < MOST_EARLY_INPUT {
            self.early_input.push_back(text);
            self.use_early_input();
        }
    }

    /// Gives waiting lines to who asks for them.
    fn use_early_input(&mut self) {
        match &mut self.current {
            None => self.early_input.clear(),
            Some(Current::Query { asks, .. }) => {
                if *asks
                    && let Some(interpreter) = &mut self.interpreter
                    && let Some(text) = self.early_input.pop_front()
                {
                    *asks = false;
                    interpreter.answer(&text);
                }
            }
            Some(Current::Steps(_)) => {
                if self.input.is_waiting()
                    && let Some(text) = self.early_input.pop_front()
                    && self.input.answer(&text)
                {
                    self.ask_for_batch();
                }
            }
        }
    }

    pub(super) fn command_runs(&self) -> bool {
        matches!(self.current, Some(Current::Steps(_)))
    }

    /// A batch program waits: what it wrote before (its prompt) is sent first.
    pub(super) fn ask_for_batch(&mut self) {
        self.drain_command_output();
        self.send(Record::BatchWaits);
        self.use_early_input();
    }

    pub(super) fn reaped(&mut self, pid: Pid, code: i32) {
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.reaped(pid, code);
        }
        if let Some(Current::Steps(Steps {
            command: Some(command),
            ..
        })) = &mut self.current
        {
            command.reaped(pid, code);
        }
    }

    /// Starts the interpreter before anybody asks for it; on a busy machine, where other kernels may be starting, later.
    pub(super) fn warm_up(&mut self) {
        if self.settings.language.query == Query::Python && load::is_busy() {
            self.debug("the interpreter waits for a free processor");
            let now = Instant::now();
            self.warm_up = Some((now + load::LOOK_AGAIN, now + load::PATIENCE));
        } else {
            self.start_interpreter();
        }
    }

    /// Looks again, if it is time.
    pub(super) fn go_on_to_warm_up(&mut self) {
        let Some((time, latest)) = self.warm_up.filter(|_| self.stop_by.is_none()) else {
            return;
        };
        let now = Instant::now();
        if now < time {
            return;
        }
        if now < latest && load::is_busy() {
            self.warm_up = Some((now + load::LOOK_AGAIN, latest));
        } else {
            self.start_interpreter();
        }
    }

    /// Starts the interpreter of queries, if the kernel has one. That it is missing is told when it is asked for.
    pub(super) fn start_interpreter(&mut self) {
        self.warm_up = None;
        if self.settings.language.query != Query::Python {
            return;
        }
        let Some(runtime) = self
            .settings
            .environ
            .find(self.settings.runtime.as_os_str(), &self.settings.folder)
        else {
            return;
        };
        let generation = self.next_generation();
        match Interpreter::start(
            &runtime,
            &self.settings.environ,
            &self.settings.folder,
            generation,
        ) {
            Ok(mut interpreter) => {
                interpreter.pump(&self.epoll);
                self.interpreter = Some(interpreter);
            }
            Err(error) => log::note(&format!("{} cannot be started: {error}", runtime.display())),
        }
    }

    /// After the interpreter's death: its last words, the end of its run, and a fresh one.
    fn bury_interpreter(&mut self) {
        let Some(code) = self
            .interpreter
            .as_ref()
            .and_then(|interpreter| interpreter.exit)
        else {
            return;
        };
        self.drain_frames();
        self.drain_interpreter_output();
        let was_ready = self
            .interpreter
            .take()
            .is_some_and(|interpreter| interpreter.ready);
        if matches!(self.current, Some(Current::Query { .. })) {
            let (reason, code) = if was_ready {
                ("the interpreter has ended and its variables are lost", code)
            } else {
                ("the interpreter does not start", CANNOT_RUN)
            };
            self.send(Record::note(&format!("{reason} (exit code {code})")));
            self.finish(None, code);
        }
        if was_ready && self.stop_by.is_none() {
            self.start_interpreter();
        }
    }
}
