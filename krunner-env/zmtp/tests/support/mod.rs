//! Python peers for the tests: libzmq through pyzmq, in a process of its own that can be killed.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod python;

use std::future::Future;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use zmtp::Message;
use zmtp::net::{AsyncPull, AsyncPush, NetConfig};

/// What every script starts with: `sock` opens a socket that binds or connects, `say` and `hear` talk with the test.
const PRELUDE: &str = r#"
import sys, time, zmq
ctx = zmq.Context()
addr = "tcp://" + sys.argv[1]
def say(*words): print(*words, flush=True)
def hear(): return sys.stdin.readline().strip()
def sock(kind, how, **options):
    s = ctx.socket(getattr(zmq, kind))
    s.setsockopt(zmq.LINGER, options.pop("LINGER", 20000))
    s.setsockopt(zmq.RECONNECT_IVL, 20)
    for name, value in options.items(): s.setsockopt(getattr(zmq, name), value)
    getattr(s, how)(addr)
    return s
"#;

/// A Python process with a ZeroMQ socket. It is killed when the value is dropped.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Runs the script against `address`.
    pub fn run(address: SocketAddr, script: &str) -> Self {
        let mut child = Command::new(python::interpreter())
            .args(["-c", &format!("{PRELUDE}\n{script}"), &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the interpreter starts");
        let stdin = child.stdin.take().expect("stdin is piped");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// The next line that the script says.
    pub async fn line(&mut self) -> String {
        self.lines
            .next_line()
            .await
            .expect("readable")
            .expect("the script has ended early: see its traceback")
    }

    /// Lets the script's `hear` return.
    pub async fn tell(&mut self, line: &str) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("the script listens");
    }

    /// Kills the process without a chance to close its socket, as SIGKILL does.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the process can be killed");
    }

    /// Waits until the script has ended by itself.
    pub async fn end(mut self) {
        let status = self
            .child
            .wait()
            .await
            .expect("the process can be waited for");
        assert!(status.success(), "the script failed: {status}");
    }
}

/// A port of 127.0.0.1 where nobody listens yet, and that no other test gets while the value lives.
pub struct FreePort {
    socket: TcpSocket,
}

impl FreePort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .set_reuseaddr(true)
            .expect("an option of every socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("some port is free");
        Self { socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }
}

/// Settings with short waits, so that tests that reconnect are quick.
pub fn quick() -> NetConfig {
    NetConfig {
        reconnect_first: Duration::from_millis(20),
        reconnect_max: Duration::from_millis(100),
        ..NetConfig::default()
    }
}

/// Fails a test that hangs.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("the test hangs")
}

/// Waits for something that has no event of its own.
pub async fn eventually(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether nothing more is being written: twice the same queue with a pause between.
pub async fn push_settled(push: &AsyncPush) -> bool {
    let before = push.queued();
    tokio::time::sleep(Duration::from_millis(100)).await;
    push.queued() == before
}

/// A message of one frame, the number in decimal.
pub fn numbered(number: usize) -> Message {
    Message::from([number.to_string()])
}

/// The script's part that says each message, until `last`.
pub const SAY_ALL: &str = r#"
while True:
    frames = s.recv_multipart()
    say(b"|".join(frames).decode())
    if frames[0] == b"last": break
"#;

/// Receives these numbers, one after the other.
pub async fn pull_numbers(pull: &AsyncPull, range: std::ops::Range<usize>) {
    for number in range {
        assert_eq!(pull.recv().await, Some(numbered(number)));
    }
}
