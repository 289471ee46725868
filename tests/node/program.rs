//! A program under test, on pipes or on a terminal, killed when it hangs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// A program that hangs is killed after this long, so that its test fails instead of hanging too.
const PATIENCE: Duration = Duration::from_secs(100);

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| panic!("killed by signal {:?}", status.signal()))
}

/// Kills a process that hangs.
struct Watchdog {
    over: Arc<AtomicBool>,
    pid: Pid,
}

impl Watchdog {
    fn new(child: &Child) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let pid = Pid::from_child(child);
        let stop = Arc::clone(&over);
        std::thread::spawn(move || {
            for _ in 0..PATIENCE.as_secs() * 10 {
                std::thread::sleep(Duration::from_millis(100));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            let _ = kill_process(pid, Signal::KILL);
        });
        Self { over, pid }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A program on pipes.
pub struct Run {
    child: Child,
    pub input: Option<ChildStdin>,
    pub out: BufReader<ChildStdout>,
    err: Option<JoinHandle<String>>,
    dog: Watchdog,
}

impl Run {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let mut stderr: ChildStderr = child.stderr.take().expect("piped");
        let err = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            input: child.stdin.take(),
            out: BufReader::new(child.stdout.take().expect("piped")),
            err: Some(err),
            dog: Watchdog::new(&child),
            child,
        }
    }

    /// The next line of standard output, with its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("text");
        line
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.dog.pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.dog.pid, signal).expect("it lives");
    }

    /// Writes to its standard input.
    pub fn say(&mut self, text: &str) {
        let input = self.input.as_mut().expect("open");
        input.write_all(text.as_bytes()).expect("written");
        input.flush().expect("written");
    }

    /// Reads its output to the end and waits for it.
    pub fn end(self) -> Outcome {
        let (status, out, err) = self.wait();
        Outcome {
            code: exit_code(status),
            out,
            err,
        }
    }

    /// Like [`Run::end`], however it ends.
    pub fn wait(mut self) -> (ExitStatus, String, String) {
        drop(self.input.take());
        let mut out = Vec::new();
        self.out.read_to_end(&mut out).expect("read");
        let status = self.child.wait().expect("waited for");
        let err = self.err.take().expect("not read before").join();
        let out = String::from_utf8_lossy(&out).into_owned();
        (status, out, err.expect("read"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A program on a terminal.
pub struct OnTerminal {
    child: Child,
    master: File,
    seen: String,
    _dog: Watchdog,
}

impl OnTerminal {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("terminal");
        grantpt(&master).expect("terminal");
        unlockpt(&master).expect("terminal");
        let name = ptsname(&master, Vec::new()).expect("terminal");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = || -> OwnedFd { open(&*name, flags, 0.into()).expect("terminal") };
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().expect("started");
        // The end of the output is seen when nobody has the terminal open any more.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            _dog: Watchdog::new(&child),
            child,
            master: master.into(),
            seen: String::new(),
        }
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("written");
    }

    /// Waits until what is typed is not shown.
    pub fn until_hidden(&self) {
        for _ in 0..5000 {
            let modes = tcgetattr(&self.master).expect("a terminal").local_modes;
            if !modes.contains(LocalModes::ECHO) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("what is typed stays visible");
    }

    /// Reads until a text is on the screen, after what was found before; gives what is between.
    pub fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(self.read(), "{text:?} never came; there is {:?}", self.seen);
        }
    }

    fn read(&mut self) -> bool {
        let mut part = [0; 4096];
        // A terminal that nobody has open is an error to read.
        let length = self.master.read(&mut part).unwrap_or(0);
        self.seen
            .push_str(&String::from_utf8_lossy(&part[..length]));
        length > 0
    }

    /// Reads to the end: exit code, and the rest of the screen.
    pub fn end(mut self) -> (i32, String) {
        while self.read() {}
        let status = self.child.wait().expect("waited for");
        (exit_code(status), std::mem::take(&mut self.seen))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
