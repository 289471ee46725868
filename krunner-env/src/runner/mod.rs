//! The event loop: one thread waits for sockets, pipes and signals, and never for anything else.
//!
//! Ops are read as they come: `interrupt`, `input`, `complete`, `status` and `start-service` act at once, the others queue up as runs
//! ([`run`]). Records queue up in memory, up to [`FULL`] bytes; then the programs' pipes are left alone ([`flow`]), so that
//! a flood waits in its producer, while ops are served as always.

mod flow;
mod run;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zmtp::{Config, Limits, Pull, Push};

use crate::args::Options;
use crate::input::UserInput;
use crate::interpreter::Interpreter;
use crate::link::Link;
use crate::log;
use crate::plan::Phase;
use crate::settings::Settings;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::signal::Signals;
use crate::sys::{self, process};
use crate::token::Token;
use crate::wire::{Op, Record};

use run::{Current, Job};

/// Waiting records of this many bytes stop the programs' output …
const FULL: usize = 16 << 20;
/// … until no more than this waits.
const ROOM: usize = 8 << 20;
/// What one read takes at most; the size of batch records.
const BUFFER: usize = 64 << 10;
/// Ops that wait for their turn; more are refused.
const MOST_JOBS: usize = 4096;
/// Lines of input that came before they were asked for.
const MOST_EARLY_INPUT: usize = 64;
/// Times between an interrupt and the nudges that follow it, in milliseconds. The later ones are for an interpreter that
/// did not get to run on a busy machine, so that all the earlier ones met it before its system call.
const NUDGES: [u64; 9] = [10, 20, 50, 100, 500, 1_000, 2_000, 5_000, 10_000];
/// How long records may still be written when the runner is told to stop.
const LINGER: Duration = Duration::from_secs(1);

/// A kernel's runner.
#[derive(Debug)]
pub(crate) struct Runner {
    settings: Settings,
    debug: bool,
    started_at: f64,
    epoll: Epoll,
    signals: Signals,
    ops: Link<Pull>,
    records: Link<Push>,
    input: UserInput,
    interpreter: Option<Interpreter>,
    jobs: VecDeque<Job>,
    current: Option<Current>,
    build_failed: bool,
    early_input: VecDeque<String>,
    paused: bool,
    flooded: bool,
    generation: u32,
    python_dir: Option<PathBuf>,
    stop_by: Option<Instant>,
    /// When the interpreter is to be nudged next, and how often it was since the interrupt.
    nudge: Option<(Instant, usize)>,
    /// An interpreter that nobody has asked for yet, on a busy machine: when to look again, and when it starts at the latest.
    warm_up: Option<(Instant, Instant)>,
    buffer: Vec<u8>,
}

impl Runner {
    /// Binds the two ports, starts the interpreter of queries, and is ready to serve.
    ///
    /// # Errors
    /// A sentence for the operator: a port is taken, or Linux refuses something basic.
    pub(crate) fn start(options: &Options) -> Result<Self, String> {
        let started_at = sys::monotonic_seconds();
        let settings = Settings::gather(options);
        let (ops, records) = bind(options, &settings)?;
        let basic = |error: io::Error| format!("cannot set up the event loop: {error}");
        let epoll = Epoll::new().map_err(basic)?;
        let signals = Signals::block().map_err(basic)?;
        epoll
            .add(signals.as_fd(), Token::Signals.into(), Interest::READ)
            .map_err(basic)?;
        ops.watch(&epoll, Token::OpsListener).map_err(basic)?;
        records
            .watch(&epoll, Token::RecordsListener)
            .map_err(basic)?;
        process::adopt_orphans();
        let input = UserInput::open(&epoll, options.input_port, &options.input_socket);
        let mut runner = Self {
            settings,
            debug: options.debug,
            started_at,
            epoll,
            signals,
            ops,
            records,
            input,
            interpreter: None,
            jobs: VecDeque::new(),
            current: None,
            build_failed: false,
            early_input: VecDeque::new(),
            paused: false,
            flooded: false,
            generation: 0,
            python_dir: None,
            stop_by: None,
            nudge: None,
            warm_up: None,
            buffer: vec![0; BUFFER],
        };
        runner.warm_up();
        if let Some(path) = &options.ports_file {
            runner
                .write_ports(path)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(runner)
    }

    fn write_ports(&self, path: &Path) -> io::Result<()> {
        let (replin, replout, input) = (self.ops.port()?, self.records.port()?, self.input.port());
        let beside = path.with_extension("new");
        std::fs::write(
            &beside,
            format!("{{\"replin\": {replin}, \"replout\": {replout}, \"input\": {input}}}\n"),
        )?;
        std::fs::rename(beside, path)
    }

    /// Serves until a signal says stop.
    ///
    /// # Errors
    /// Only if waiting itself fails.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.settle();
            if self.stop_by.is_some_and(|time| self.may_end(time)) {
                self.end();
                return Ok(());
            }
            for bits in self.epoll.wait(self.timeout())? {
                if let Some(token) = Token::from_bits(bits) {
                    self.dispatch(token);
                }
            }
        }
    }

    /// After the signal to stop: nothing is left to write, nobody is there to read it, or the time is up.
    fn may_end(&self, stop_by: Instant) -> bool {
        let records = &self.records.socket;
        records.is_drained() || records.peers().next().is_none() || stop_by <= Instant::now()
    }

    fn timeout(&self) -> Option<Duration> {
        let stop = self
            .stop_by
            .map(|time| time.saturating_duration_since(Instant::now()));
        let nudge = self
            .nudge
            .map(|(time, _)| time.saturating_duration_since(Instant::now()));
        let warm_up = self
            .warm_up
            .filter(|_| self.stop_by.is_none())
            .map(|(time, _)| time.saturating_duration_since(Instant::now()));
        [
            stop,
            nudge,
            warm_up,
            self.ops.timeout(),
            self.records.timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Signals => self.take_signals(),
            Token::OpsListener => self.ops.accept(&self.epoll),
            Token::RecordsListener => self.records.accept(&self.epoll),
            Token::Ops(key) => {
                self.ops.read(key, &mut self.buffer);
                self.take_ops();
            }
            Token::Records(key) => self.records.read(key, &mut self.buffer),
            Token::Batch(stream, generation) => self.read_command(stream, generation),
            Token::Interpreter(stream, generation) => {
                self.read_interpreter_output(stream, generation)
            }
            Token::Frames(generation) => self.read_frames(generation),
            // Room in the pipe: it is used in `settle`.
            Token::Control(_) => {}
            Token::InputTcp | Token::InputUnix => {
                if self.input.accept(&self.epoll, self.command_runs()) {
                    self.ask_for_batch();
                }
            }
            Token::InputClient(number) => {
                if self.input.check(number, &mut self.buffer) {
                    self.ask_for_batch();
                }
            }
        }
    }

    /// After every round: goes on with runs, writes what can be written, opens or closes the gate for output.
    fn settle(&mut self) {
        self.advance();
        self.nudge_interpreter();
        self.go_on_to_warm_up();
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.pump(&self.epoll);
        }
        self.records.pump(&self.epoll);
        self.ops.pump(&self.epoll);
        self.regulate();
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGCHLD {
                while let Some((pid, code)) = process::reap() {
                    self.reaped(pid, code);
                }
            } else if self.stop_by.is_none() {
                self.debug(&format!("stopping on signal {signal}"));
                self.stop_by = Some(Instant::now() + LINGER);
                self.signal_all(libc::SIGTERM);
            }
        }
    }

    fn signal_all(&self, signal: i32) {
        if let Some(interpreter) = &self.interpreter {
            interpreter.signal(signal);
        }
        if let Some(Current::Steps(steps)) = &self.current {
            steps.signal(signal);
        }
    }

    fn end(&mut self) {
        self.signal_all(libc::SIGKILL);
        if let Some(dir) = self.python_dir.take() {
            let _left_behind = std::fs::remove_dir_all(dir);
        }
    }

    fn take_ops(&mut self) {
        while let Some(message) = self.ops.socket.try_recv() {
            match Op::read(&message) {
                Some(op) => self.take_op(op),
                None => self.debug("passed over a message that is not an op"),
            }
        }
    }

    fn take_op(&mut self, op: Op) {
        match op {
            Op::Batch(phase, command) => self.enqueue(Job::Batch(phase, command)),
            Op::Code(code) => self.enqueue(Job::Query(code)),
            Op::Input(text) => self.take_input(text),
            Op::Complete(line) => self.complete(&line),
            Op::Interrupt => self.interrupt(),
            Op::Status if self.paused => self.debug("no status while the agent does not read"),
            Op::Status => self.send(Record::Status(self.started_at)),
            Op::StartService(request) => {
                let reason = request
                    .err()
                    .unwrap_or_else(|| "unsupported service".to_owned());
                self.send(Record::ServiceFailed(reason));
            }
        }
    }

    fn enqueue(&mut self, job: Job) {
        if self.jobs.len() < MOST_JOBS {
            self.jobs.push_back(job);
            return;
        }
        let phase = job.phase();
        self.send(Record::note(
            "too many requests wait for their turn: this one is refused",
        ));
        self.send(Record::Finished(phase, -1));
    }

    /// Completes at once or not at all: nobody waits for a list while user code runs.
    fn complete(&mut self, line: &str) {
        self.advance();
        let busy = matches!(self.current, Some(Current::Query { .. }));
        if self.interpreter.is_none() && !busy {
            self.start_interpreter();
        }
        match &mut self.interpreter {
            Some(interpreter) if !busy => interpreter.complete(line),
            _ => self.send(Record::Completion(Vec::new())),
        }
    }

    fn send(&mut self, record: Record) {
        // The queue's own limit is far above ours, which regulates the producers; only a flood of tiny answers can meet it.
        if self.records.socket.try_push(record.into()).is_err() {
            log::note("the queue of records is full: a record is lost");
        }
    }

    fn debug(&self, text: &str) {
        if self.debug {
            log::note(text);
        }
    }

    /// Numbers tell the pipes of successive programs apart.
    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }
}

fn bind(options: &Options, settings: &Settings) -> Result<(Link<Pull>, Link<Push>), String> {
    let taken = |port: u16| {
        move |error: io::Error| format!("cannot listen on {}:{port}: {error}", options.bind)
    };
    let ops = Config {
        limits: Limits {
            frames: 16,
            ..Limits::default()
        },
        ..Config::default()
    };
    let records = Config {
        send_limit: 4 * FULL,
        ..Config::default()
    };
    let ops = Link::bind(options.bind, settings.replin, ops, Token::Ops)
        .map_err(taken(settings.replin))?;
    let records = Link::bind(options.bind, settings.replout, records, Token::Records)
        .map_err(taken(settings.replout))?;
    Ok((ops, records))
}

impl Job {
    fn phase(&self) -> Option<Phase> {
        match self {
            Self::Batch(phase, _) => Some(*phase),
            Self::Query(_) => None,
        }
    }
}
