//! The person's side of a run: output as it comes, progress on standard error, input line by line.

use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::oneshot;

use crate::agent::request::ConsoleItem;

/// Where output goes and input comes from.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    input: Input,
    /// Whether input is the standard input, so that echo can be switched off.
    standard: bool,
    progress: bool,
}

/// The input and what it said.
type Answer = (Box<dyn BufRead + Send>, io::Result<Option<String>>);

/// Input is read on a thread of its own: a program must be able to end while nobody types.
enum Input {
    /// Nobody reads.
    Idle(Box<dyn BufRead + Send>),
    /// A thread reads; what it gets belongs to whoever asks next.
    Reading(oneshot::Receiver<Answer>),
    /// The thread has failed.
    Lost,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Terminal {
    /// The process's standard streams.
    #[must_use]
    pub fn standard(progress: bool) -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Input::Idle(Box::new(io::BufReader::new(io::stdin()))),
            standard: true,
            progress,
        }
    }

    /// Other streams.
    #[must_use]
    pub fn new(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        input: Box<dyn BufRead + Send>,
    ) -> Self {
        Self {
            out,
            err,
            input: Input::Idle(input),
            standard: false,
            progress: true,
        }
    }

    /// Tells how far the run is.
    pub fn progress(&mut self, text: &str) {
        if self.progress {
            self.complain(text);
        }
    }

    /// Tells what went wrong.
    pub fn complain(&mut self, text: &str) {
        // Nowhere is left to report that standard error is closed.
        let _ = writeln!(self.err, "backendai-agent: {text}");
    }

    /// Shows output.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub fn show(&mut self, items: &[ConsoleItem]) -> io::Result<()> {
        for item in items {
            match item {
                ConsoleItem::Stdout(text) => self.out.write_all(text.as_bytes())?,
                ConsoleItem::Stderr(text) | ConsoleItem::Log(text) => {
                    self.out.flush()?;
                    self.err.write_all(text.as_bytes())?;
                }
                ConsoleItem::Html(text) => writeln!(self.out, "{text}")?,
                ConsoleItem::Media { mime, data } => {
                    writeln!(self.out, "[{mime}, {} bytes]", data.len())?;
                }
            }
        }
        self.out.flush()?;
        self.err.flush()
    }

    /// Reads all input as code.
    ///
    /// # Errors
    /// When it cannot be read, or is not text.
    pub async fn read_all(&mut self) -> io::Result<String> {
        let text = self.read(|input| {
            let mut text = String::new();
            input.read_to_string(&mut text)?;
            Ok(Some(text))
        });
        Ok(text.await?.unwrap_or_default())
    }

    /// Reads one line without its end; `None` at the end of the input. A secret one is not shown while it is typed.
    /// When it is cancelled, the next call gets the line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read_line(&mut self, secret: bool) -> io::Result<Option<String>> {
        let _quiet = (secret && self.standard).then(Quiet::begin).flatten();
        self.read(|input| {
            let mut line = String::new();
            let length = input.read_line(&mut line)?;
            let text = line.trim_end_matches(['\r', '\n']);
            Ok((length > 0).then(|| text.to_owned()))
        })
        .await
    }

    async fn read(
        &mut self,
        read: impl FnOnce(&mut dyn BufRead) -> io::Result<Option<String>> + Send + 'static,
    ) -> io::Result<Option<String>> {
        let lost = || io::Error::other("the input is lost");
        if let Input::Idle(_) = self.input
            && let Input::Idle(mut input) = std::mem::replace(&mut self.input, Input::Lost)
        {
            let (answer, reading) = oneshot::channel();
            let thread = std::thread::Builder::new().name("input".to_owned());
            thread.spawn(move || {
                let result = read(&mut *input);
                // Nobody asks any more when the run is over.
                let _ = answer.send((input, result));
            })?;
            self.input = Input::Reading(reading);
        }
        let Input::Reading(reading) = &mut self.input else {
            return Err(lost());
        };
        let answer = reading.await;
        self.input = Input::Lost;
        let (input, result) = answer.map_err(|_| lost())?;
        self.input = Input::Idle(input);
        result
    }
}

/// Standard input without echo, until dropped.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&stdin, OptionalActions::Now, &quiet).ok()?;
        Some(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
