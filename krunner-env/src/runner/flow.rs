//! Output: from the programs' pipes to the queue of records, and the gate between them.

use std::path::PathBuf;

use super::run::{Current, Steps};
use super::{BUFFER, FULL, ROOM, Runner};
use crate::log;
use crate::output::{Chunk, Output};
use crate::sys;
use crate::token::{Stream, Token};
use crate::wire::Record;

/// What is read from a pipe at the end of a query at most: more than a pipe holds, so that only a flood of a program
/// that goes on in the background meets it.
const MOST_DRAINED: usize = 1 << 20;
const SITECUSTOMIZE: &str = include_str!("../python/sitecustomize.py");

impl Runner {
    /// Opens or closes the gate, and watches the pipes accordingly. After a flood the memory is given back.
    pub(super) fn regulate(&mut self) {
        let queued = self.records.socket.queued_bytes();
        self.paused = if self.paused {
            queued > ROOM
        } else {
            queued >= FULL
        };
        self.flooded |= self.paused;
        if self.flooded && queued == 0 {
            self.flooded = false;
            sys::trim_heap();
        }
        let open = !self.paused;
        if let Some(Current::Steps(Steps {
            command: Some(command),
            ..
        })) = &mut self.current
        {
            command.watch(&self.epoll, open);
        }
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.watch(&self.epoll, open);
        }
    }

    pub(super) fn read_command(&mut self, stream: Stream, generation: u32) {
        if let Some(output) = self.command_output(stream)
            && output.has(Token::Batch(stream, generation))
        {
            self.read_command_once(stream);
        }
    }

    fn command_output(&mut self, stream: Stream) -> Option<&mut Output> {
        match &mut self.current {
            Some(Current::Steps(Steps {
                command: Some(command),
                ..
            })) => Some(command.output(stream)),
            _ => None,
        }
    }

    fn read_command_once(&mut self, stream: Stream) -> Option<usize> {
        let Some(Current::Steps(Steps {
            command: Some(command),
            ..
        })) = &mut self.current
        else {
            return None;
        };
        let Chunk::Data(count) = command.output(stream).read(&mut self.buffer) else {
            return None;
        };
        log::copy(stream, &self.buffer[..count]);
        self.send(output_record(stream, self.buffer[..count].to_vec()));
        Some(count)
    }

    /// Sends what a batch program has written so far.
    pub(super) fn drain_command_output(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut total = 0;
            while let Some(count) = self.read_command_once(stream)
                && total < MOST_DRAINED
            {
                total += count;
            }
        }
    }

    pub(super) fn read_interpreter_output(&mut self, stream: Stream, generation: u32) {
        if let Some(interpreter) = &mut self.interpreter
            && interpreter
                .output(stream)
                .has(Token::Interpreter(stream, generation))
        {
            self.read_interpreter_output_once(stream);
        }
    }

    fn read_interpreter_output_once(&mut self, stream: Stream) -> Option<usize> {
        let interpreter = self.interpreter.as_mut()?;
        let Chunk::Data(count) = interpreter.output(stream).read(&mut self.buffer) else {
            return None;
        };
        self.send(output_record(stream, self.buffer[..count].to_vec()));
        Some(count)
    }

    /// Sends what the interpreter's C code and child processes have written so far.
    pub(super) fn drain_interpreter_output(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut total = 0;
            while let Some(count) = self.read_interpreter_output_once(stream)
                && total < MOST_DRAINED
            {
                total += count;
            }
        }
    }

    pub(super) fn read_frames(&mut self, generation: u32) {
        if self
            .interpreter
            .as_ref()
            .is_some_and(|interpreter| interpreter.has_frames(Token::Frames(generation)))
        {
            self.read_frames_once();
        }
    }

    fn read_frames_once(&mut self) -> bool {
        let Some(interpreter) = &mut self.interpreter else {
            return false;
        };
        let (more, events) = interpreter.read(&mut self.buffer);
        for event in events {
            self.take_event(event);
        }
        more
    }

    /// The last words of an interpreter that has died.
    pub(super) fn drain_frames(&mut self) {
        let mut rounds = MOST_DRAINED / BUFFER;
        while rounds > 0 && self.read_frames_once() {
            rounds -= 1;
        }
    }

    /// The folder with our `sitecustomize.py`, made for the first batch program. Without it (no place to write) programs
    /// run all the same, and `input()` reads an empty standard input.
    pub(super) fn python_dir(&mut self) -> Option<PathBuf> {
        if self.python_dir.is_none() {
            let made = make_python_dir();
            if let Err(error) = &made {
                log::note(&format!("no user input for Python in batch mode: {error}"));
            }
            self.python_dir = made.ok();
        }
        self.python_dir.clone()
    }
}

fn make_python_dir() -> std::io::Result<PathBuf> {
    let mut attempt = 0;
    loop {
        let dir =
            std::env::temp_dir().join(format!(".krunner-python-{}-{attempt}", std::process::id()));
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                std::fs::write(dir.join("sitecustomize.py"), SITECUSTOMIZE)?;
                return Ok(dir);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {
                attempt += 1
            }
            Err(error) => return Err(error),
        }
    }
}

fn output_record(stream: Stream, data: Vec<u8>) -> Record {
    match stream {
        Stream::Stdout => Record::Stdout(data),
        Stream::Stderr => Record::Stderr(data),
    }
}
