//! One program of a batch step or of a file query: its pipes, and its end.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::environ::Environ;
use crate::output::Output;
use crate::sys::process::{self, Pid, Program};
use crate::sys::{epoll::Epoll, fd};
use crate::token::{Stream, Token};

/// A running program.
#[derive(Debug)]
pub(crate) struct Command {
    pid: Pid,
    exit: Option<i32>,
    stdout: Output,
    stderr: Output,
}

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// It is not in the image.
    Missing,
    /// Linux refuses.
    System(io::Error),
}

impl Command {
    /// Starts `words`, the program first, in `folder`. The pipes carry the number `generation` in their tokens.
    pub(crate) fn start(
        words: &[OsString],
        environ: &Environ,
        folder: &Path,
        generation: u32,
    ) -> Result<Self, StartError> {
        let name = words.first().ok_or(StartError::Missing)?;
        let file = environ.find(name, folder).ok_or(StartError::Missing)?;
        Self::spawn(&file, words, environ, folder, generation).map_err(StartError::System)
    }

    fn spawn(
        file: &Path,
        argv: &[OsString],
        environ: &Environ,
        folder: &Path,
        generation: u32,
    ) -> io::Result<Self> {
        let stdin = fd::empty_input()?;
        let (stdout, child_stdout) = Output::pipe(Token::Batch(Stream::Stdout, generation))?;
        let (stderr, child_stderr) = Output::pipe(Token::Batch(Stream::Stderr, generation))?;
        let fds: [(&OwnedFd, i32); 3] = [(&stdin, 0), (&child_stdout, 1), (&child_stderr, 2)];
        let pid = process::spawn(&Program {
            file,
            argv,
            environment: &environ.pairs(),
            folder,
            fds: &fds,
            patient: false,
        })?;
        Ok(Self {
            pid,
            exit: None,
            stdout,
            stderr,
        })
    }

    /// The pipe of one stream.
    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Watches the pipes or leaves them alone.
    pub(crate) fn watch(&mut self, epoll: &Epoll, wanted: bool) {
        self.stdout.watch(epoll, wanted);
        self.stderr.watch(epoll, wanted);
    }

    /// A child was reaped; perhaps it was this one.
    pub(crate) fn reaped(&mut self, pid: Pid, code: i32) {
        if pid == self.pid {
            self.exit = Some(code);
        }
    }

    /// The exit code, once the program has ended and both pipes have been read to their end.
    pub(crate) fn result(&self) -> Option<i32> {
        self.exit
            .filter(|_| self.stdout.is_closed() && self.stderr.is_closed())
    }

    /// Sends a signal to the program and all that it has started.
    pub(crate) fn signal(&self, signal: i32) {
        process::signal_group(self.pid, signal, self.exit.is_some());
    }
}
