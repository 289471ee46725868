//! The Python interpreter for queries: the image's own, with our helper in it (`python/helper.py` says how frames look).
//! It keeps the variables of a session; when it dies, the runner starts a fresh one.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::environ::Environ;
use crate::output::{Chunk, Output};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fd;
use crate::sys::process::{self, Pid, Program};
use crate::token::{Stream, Token};
use crate::wire::Record;

const LOADER: &str = include_str!("python/loader.py");
const HELPER: &str = include_str!("python/helper.py");

/// A frame that claims to be longer is the end of the conversation.
const LONGEST_FRAME: usize = 64 << 20;
/// Output frames are joined up to this size.
const RECORD_SIZE: usize = 64 << 10;

/// What the helper says.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// For the agent, as it is.
    Record(Record),
    /// The helper is loaded.
    Ready,
    /// User code has begun: an interrupt would meet it.
    Started,
    /// User code wants a line; true: a password.
    Asks(bool),
    /// User code has ended with this exit code.
    Finished(i32),
}

/// A running interpreter.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pid: Pid,
    /// What it ended with.
    pub(crate) exit: Option<i32>,
    /// It has said hello.
    pub(crate) ready: bool,
    control: Option<OwnedFd>,
    control_token: Token,
    control_watched: bool,
    unwritten: VecDeque<u8>,
    frames: Output,
    received: Vec<u8>,
    stdout: Output,
    stderr: Output,
}

impl Interpreter {
    /// Starts `runtime` and hands it the helper.
    pub(crate) fn start(
        runtime: &Path,
        environ: &Environ,
        folder: &Path,
        generation: u32,
    ) -> io::Result<Self> {
        let stdin = fd::empty_input()?;
        let (child_control, control) = fd::pipe()?;
        fd::set_nonblocking(control.as_fd())?;
        let (frames, child_frames) = Output::pipe(Token::Frames(generation))?;
        let (stdout, child_stdout) = Output::pipe(Token::Interpreter(Stream::Stdout, generation))?;
        let (stderr, child_stderr) = Output::pipe(Token::Interpreter(Stream::Stderr, generation))?;
        let argv: Vec<OsString> = [
            runtime.as_os_str(),
            "-u".as_ref(),
            "-c".as_ref(),
            LOADER.as_ref(),
        ]
        .map(OsString::from)
        .to_vec();
        let fds = [
            (&stdin, 0),
            (&child_stdout, 1),
            (&child_stderr, 2),
            (&child_control, 3),
            (&child_frames, 4),
        ];
        let pid = process::spawn(&Program {
            file: runtime,
            argv: &argv,
            environment: &environ.pairs(),
            folder,
            fds: &fds,
            patient: false,
        })?;
        let mut interpreter = Self {
            pid,
            exit: None,
            ready: false,
            control: Some(control),
            control_token: Token::Control(generation),
            control_watched: false,
            unwritten: VecDeque::new(),
            frames,
            received: Vec::new(),
            stdout,
            stderr,
        };
        interpreter.put_length(HELPER.len());
        interpreter.unwritten.extend(HELPER.as_bytes());
        Ok(interpreter)
    }

    /// Runs code; its end will be [`Event::Finished`].
    pub(crate) fn run(&mut self, code: &str) {
        self.put(b'C', code);
    }

    /// Answers [`Event::Asks`].
    pub(crate) fn answer(&mut self, text: &str) {
        self.put(b'I', text);
    }

    /// Asks for completions of a line; they come as a record.
    pub(crate) fn complete(&mut self, line: &str) {
        self.put(b'K', line);
    }

    fn put(&mut self, kind: u8, body: &str) {
        self.put_length(body.len() + 1);
        self.unwritten.push_back(kind);
        self.unwritten.extend(body.as_bytes());
    }

    fn put_length(&mut self, length: usize) {
        let length = u32::try_from(length).expect("messages are limited to far less than 4 GiB");
        self.unwritten.extend(length.to_be_bytes());
    }

    /// Writes what waits for the interpreter, as far as its pipe has room.
    pub(crate) fn pump(&mut self, epoll: &Epoll) {
        let Some(control) = &self.control else { return };
        let mut broken = false;
        while !self.unwritten.is_empty() {
            match fd::write(control.as_fd(), self.unwritten.as_slices().0) {
                Ok(Some(count)) => drop(self.unwritten.drain(..count)),
                Ok(None) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        let wanted = !self.unwritten.is_empty() && !broken;
        if wanted != self.control_watched {
            self.control_watched = wanted;
            if !wanted {
                epoll.remove(control.as_fd());
            } else if epoll
                .add(control.as_fd(), self.control_token.into(), Interest::WRITE)
                .is_err()
            {
                broken = true;
            }
        }
        if broken {
            self.unwritten.clear();
            self.control = None;
        }
    }

    /// Watches the pipes or leaves them alone.
    pub(crate) fn watch(&mut self, epoll: &Epoll, wanted: bool) {
        self.frames.watch(epoll, wanted);
        self.stdout.watch(epoll, wanted);
        self.stderr.watch(epoll, wanted);
    }

    /// The pipe that the interpreter's C code and child processes write to.
    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Reads frames once and returns what they say. When the conversation ends, the interpreter is killed.
    /// False: there is nothing more to read now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> (bool, Vec<Event>) {
        match self.frames.read(buffer) {
            Chunk::Data(count) => self.received.extend_from_slice(&buffer[..count]),
            Chunk::Empty => return (false, Vec::new()),
            Chunk::End => {
                self.kill();
                return (false, Vec::new());
            }
        }
        let events = take_events(&mut self.received).unwrap_or_else(|Garbled| {
            self.received.clear();
            self.kill();
            Vec::new()
        });
        (true, events)
    }

    /// Whether an event with this token is about this interpreter's frames, and the gate is open.
    pub(crate) fn has_frames(&self, token: Token) -> bool {
        self.frames.has(token)
    }

    fn kill(&self) {
        if self.exit.is_none() {
            self.signal(libc::SIGKILL);
        }
    }

    /// A child was reaped; perhaps it was this one.
    pub(crate) fn reaped(&mut self, pid: Pid, code: i32) {
        if pid == self.pid {
            self.exit = Some(code);
        }
    }

    /// Makes the interpreter notice an interrupt that met it on the way into a system call.
    pub(crate) fn nudge(&self) {
        if self.exit.is_none() {
            process::signal(self.pid, libc::SIGURG);
        }
    }

    /// Sends a signal to the interpreter and all that it has started.
    pub(crate) fn signal(&self, signal: i32) {
        process::signal_group(self.pid, signal, self.exit.is_some());
    }
}

/// The frames make no sense.
#[derive(Debug, PartialEq, Eq)]
struct Garbled;

/// Takes the whole frames off the front; consecutive output of one stream becomes one record.
fn take_events(received: &mut Vec<u8>) -> Result<Vec<Event>, Garbled> {
    let mut events = Vec::new();
    let mut at = 0;
    while let Some(header) = received.get(at..at + 4) {
        let length = u32::from_be_bytes(header.try_into().expect("four bytes")) as usize;
        if length == 0 || length > LONGEST_FRAME {
            return Err(Garbled);
        }
        let Some(frame) = received.get(at + 4..at + 4 + length) else {
            break;
        };
        let (kind, body) = frame.split_first().expect("a frame has a letter");
        add_event(&mut events, *kind, body)?;
        at += 4 + length;
    }
    received.drain(..at);
    if received.is_empty() && received.capacity() > 1 << 20 {
        received.shrink_to(0);
    }
    Ok(events)
}

fn add_event(events: &mut Vec<Event>, kind: u8, body: &[u8]) -> Result<(), Garbled> {
    let text = || String::from_utf8_lossy(body).into_owned();
    match (kind, events.last_mut()) {
        (b'o', Some(Event::Record(Record::Stdout(last))))
        | (b'e', Some(Event::Record(Record::Stderr(last))))
            if last.len() + body.len() <= RECORD_SIZE =>
        {
            last.extend_from_slice(body);
            return Ok(());
        }
        _ => {}
    }
    events.push(match kind {
        b'o' => Event::Record(Record::Stdout(body.to_vec())),
        b'e' => Event::Record(Record::Stderr(body.to_vec())),
        b'h' => Event::Record(Record::Html(body.to_vec())),
        b'm' => {
            let text = text();
            let (mime, data) = text.split_once('\0').ok_or(Garbled)?;
            Event::Record(Record::Media(mime.to_owned(), data.to_owned()))
        }
        b'c' => Event::Record(Record::Completion(
            text().lines().map(str::to_owned).collect(),
        )),
        b'R' => Event::Ready,
        b's' => Event::Started,
        b'w' => Event::Asks(body == b"1"),
        b'f' => Event::Finished(text().parse().map_err(|_| Garbled)?),
        _ => return Err(Garbled),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 1).expect("short");
        [length.to_be_bytes().as_slice(), &[kind], body].concat()
    }

    #[test]
    fn output_of_one_stream_is_joined_and_order_is_kept() {
        let mut received = [
            frame(b'o', b"a"),
            frame(b'o', b"b"),
            frame(b'e', b"c"),
            frame(b'o', b"d"),
            frame(b'f', b"3"),
        ]
        .concat();
        let expected = vec![
            Event::Record(Record::Stdout(b"ab".to_vec())),
            Event::Record(Record::Stderr(b"c".to_vec())),
            Event::Record(Record::Stdout(b"d".to_vec())),
            Event::Finished(3),
        ];
        assert_eq!(take_events(&mut received), Ok(expected));
        assert!(received.is_empty());
    }

    #[test]
    fn a_cut_frame_waits_for_its_rest() {
        let whole = frame(b'm', b"image/png\0data:");
        let mut received = whole[..7].to_vec();
        assert_eq!(take_events(&mut received), Ok(vec![]));
        received.extend(&whole[7..]);
        assert_eq!(
            take_events(&mut received),
            Ok(vec![Event::Record(Record::Media(
                "image/png".into(),
                "data:".into()
            ))])
        );
    }

    #[test]
    fn nonsense_is_noticed() {
        assert_eq!(take_events(&mut vec![0, 0, 0, 0, 0]), Err(Garbled));
        assert_eq!(take_events(&mut vec![255, 255, 255, 255]), Err(Garbled));
        assert_eq!(take_events(&mut frame(b'f', b"x")), Err(Garbled));
        assert_eq!(take_events(&mut frame(b'?', b"")), Err(Garbled));
    }
}
