//! A kernel for tests: the real binary in temporary folders and on free ports, and the agent's two sockets to it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zmtp::{Config, Message, PeerId, PullSocket, PushSocket, Role, Socket};

/// Far longer than anything here takes; only a hanging test meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_krunner"))
}

/// One end of the agent: a socket of ours with one blocking connection.
#[derive(Debug)]
pub struct End<R: Role> {
    pub socket: Socket<R>,
    stream: TcpStream,
    peer: PeerId,
}

impl<R: Role> End<R> {
    pub fn connect(port: u16, mut socket: Socket<R>) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("krunner listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let peer = socket.open(Instant::now());
        Self {
            socket,
            stream,
            peer,
        }
    }

    fn write(&mut self) {
        loop {
            let output = self.socket.output(self.peer).to_vec();
            if output.is_empty() {
                return;
            }
            self.stream.write_all(&output).expect("krunner reads");
            self.socket.written(self.peer, output.len());
        }
    }

    /// Reads once; false: nothing came in time.
    fn read(&mut self, patience: Duration) -> bool {
        let mut buffer = vec![0; 256 << 10];
        self.stream
            .set_read_timeout(Some(patience))
            .expect("a TCP socket");
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                assert!(count > 0, "krunner closed the connection");
                self.socket.receive(self.peer, &buffer[..count]);
                assert!(
                    self.socket.next_closed().is_none(),
                    "krunner broke the protocol"
                );
                self.write();
                true
            }
            Err(_) => false,
        }
    }
}

/// The agent's connections to a kernel.
#[derive(Debug)]
pub struct Agent {
    ops: End<zmtp::Push>,
    records: End<zmtp::Pull>,
}

impl Agent {
    pub fn connect(ports: Ports) -> Self {
        let mut agent = Self {
            ops: End::connect(ports.replin, PushSocket::new(Config::default())),
            records: End::connect(ports.replout, PullSocket::new(Config::default())),
        };
        // The handshake of the records' end must be over before the records flow.
        agent.records.write();
        agent
    }

    /// Sends raw frames.
    pub fn send_frames(&mut self, frames: &[&[u8]]) {
        let message: Message = frames.iter().map(|frame| frame.to_vec()).collect();
        self.ops
            .socket
            .try_push(message)
            .expect("tests send little");
        self.ops.write();
        while !self.ops.socket.is_drained() {
            assert!(self.ops.read(PATIENCE), "no handshake");
            self.ops.write();
        }
    }

    pub fn send(&mut self, op: &str, payload: &str) {
        self.send_frames(&[op.as_bytes(), payload.as_bytes()]);
    }

    /// The next record.
    pub fn recv(&mut self) -> (String, Vec<u8>) {
        self.recv_within(PATIENCE).expect("no record in time")
    }

    /// The next record, if one comes in time.
    pub fn recv_within(&mut self, patience: Duration) -> Option<(String, Vec<u8>)> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(message) = self.records.socket.try_recv() {
                let [kind, body] = message.frames() else {
                    panic!("a record of {} frames", message.frames().len())
                };
                return Some((
                    String::from_utf8(kind.to_vec()).expect("a name"),
                    body.to_vec(),
                ));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.records.read(left) {
                return None;
            }
        }
    }

    /// The next record of this kind; all before it are output and are returned joined.
    pub fn recv_until(&mut self, wanted: &str) -> Run {
        let mut run = Run::default();
        loop {
            let (kind, body) = self.recv();
            match kind.as_str() {
                _ if kind == wanted => {
                    run.end = String::from_utf8(body).expect("ends are text");
                    return run;
                }
                "stdout" => run.stdout.extend(body),
                "stderr" => run.stderr.extend(body),
                _ => run.others.push((kind, body)),
            }
        }
    }

    /// Receives output until it is this, in one record or several.
    pub fn expect_stdout(&mut self, expected: &str) {
        let mut output = Vec::new();
        while output.len() < expected.len() {
            let (kind, body) = self.recv();
            assert_eq!(kind, "stdout", "{}", String::from_utf8_lossy(&body));
            output.extend(body);
        }
        assert_eq!(String::from_utf8_lossy(&output), expected);
    }

    /// Interrupts a shell command until it ends. Once is not always enough: while dash starts a program, a signal
    /// can meet it between its fork and its exec, and is lost there.
    pub fn interrupt_command(&mut self) -> Run {
        let mut run = Run::default();
        loop {
            self.send("interrupt", "");
            while let Some((kind, body)) = self.recv_within(Duration::from_millis(500)) {
                match kind.as_str() {
                    "finished" => {
                        run.end = String::from_utf8(body).expect("ends are text");
                        return run;
                    }
                    "stdout" => run.stdout.extend(body),
                    "stderr" => run.stderr.extend(body),
                    _ => run.others.push((kind, body)),
                }
            }
        }
    }

    /// Runs a query to its end.
    pub fn query(&mut self, code: &str) -> Run {
        self.send("code", code);
        self.recv_until("finished")
    }

    /// Runs a batch command to its end.
    pub fn exec(&mut self, command: &str) -> Run {
        self.send("exec", command);
        self.recv_until("finished")
    }
}

/// What came until a certain record.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Run {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub others: Vec<(String, Vec<u8>)>,
    /// The body of the last record.
    pub end: String,
}

impl Run {
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    pub fn err(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("text")
    }

    pub fn code(&self) -> i64 {
        let end: serde_json::Value = serde_json::from_str(&self.end).expect("JSON");
        end["exitCode"].as_i64().expect("an exit code")
    }
}

/// The ports that a runner has bound.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub replin: u16,
    pub replout: u16,
    pub input: u16,
}

/// A runner and its folders; killed and deleted when dropped.
#[derive(Debug)]
pub struct Kernel {
    pub child: Child,
    pub dir: TempDir,
    pub ports: Ports,
}

/// How to start a [`Kernel`].
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    program: PathBuf,
    rooted: bool,
    init: bool,
    before: Vec<String>,
    after: Vec<String>,
    environ: Vec<(String, String)>,
    log: Stdio,
}

impl Builder {
    /// A kernel of this type, with the path of its runtime if given.
    pub fn new(runtime_type: &str, runtime_path: Option<&str>) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        for name in ["config", "work", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        let after = std::iter::once(runtime_type)
            .chain(runtime_path)
            .map(str::to_owned)
            .collect();
        Self {
            dir,
            program: binary().to_owned(),
            rooted: false,
            init: false,
            before: Vec::new(),
            after,
            environ: Vec::new(),
            log: Stdio::null(),
        }
    }

    /// Runs the binary by these words.
    pub fn wrapped(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Another binary than cargo's.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Starts by `krunner init`.
    pub fn init(mut self) -> Self {
        self.init = true;
        self
    }

    /// Makes the kernel's folder the root of the runner, with nothing else in it.
    pub fn rooted(mut self) -> Self {
        self.rooted = true;
        self
    }

    /// A path in the kernel's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets other users in.
    pub fn open_to_others(&self) {
        std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("our folder");
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environ.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn log(mut self, log: Stdio) -> Self {
        self.log = log;
        self
    }

    pub fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).expect("a file");
        self
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn start(self) -> Kernel {
        let mut words: Vec<OsString> = self.before.iter().map(Into::into).collect();
        let root = if self.rooted {
            self.furnish_root(&mut words)
        } else {
            self.dir.path().to_owned()
        };
        if !self.rooted {
            words.push(self.program.clone().into());
        }
        words.extend(self.init.then(|| "init".into()));
        for (option, name) in [
            ("--config-dir", "config"),
            ("--work-dir", "work"),
            ("--input-socket", "tmp/input.sock"),
            ("--ports-file", "tmp/ports"),
        ] {
            words.extend([option.into(), root.join(name).into_os_string()]);
        }
        words.extend(
            [
                "--bind",
                "127.0.0.1",
                "--replin",
                "0",
                "--replout",
                "0",
                "--input-port",
                "0",
            ]
            .map(Into::into),
        );
        words.extend(self.after.iter().map(Into::into));
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_remove("PYTHONPATH")
            .env("TMPDIR", root.join("tmp"));
        command
            .env("MPLCONFIGDIR", root.join("tmp"))
            .envs(self.environ.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log);
        // Nothing outlives a test that is killed: the kernel belongs to the test's thread.
        // SAFETY: prctl is a system call without pointers here, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("the binary starts");
        let ports = wait_for_ports(&mut child, &self.dir.path().join("tmp/ports"));
        Kernel {
            child,
            dir: self.dir,
            ports,
        }
    }

    /// The runner, the folders that it writes to, and the words that start it there.
    fn furnish_root(&self, words: &mut Vec<OsString>) -> PathBuf {
        for folder in ["opt/backend.ai/bin", "etc"] {
            std::fs::create_dir_all(self.path(folder)).expect("a folder");
        }
        std::fs::copy(&self.program, self.path("opt/backend.ai/bin/krunner")).expect("a copy");
        std::fs::write(self.path("opt/backend.ai/agent.sock"), "").expect("a file");
        std::fs::set_permissions(self.path("tmp"), std::fs::Permissions::from_mode(0o1777))
            .expect("our folder");
        self.open_to_others();
        words.extend([
            "chroot".into(),
            self.dir.path().into(),
            "/opt/backend.ai/bin/krunner".into(),
        ]);
        PathBuf::from("/")
    }
}

fn wait_for_ports(child: &mut Child, path: &Path) -> Ports {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read(path) {
            let ports: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            let port =
                |name: &str| u16::try_from(ports[name].as_u64().expect("a port")).expect("a port");
            return Ports {
                replin: port("replin"),
                replout: port("replout"),
                input: port("input"),
            };
        }
        assert!(
            child.try_wait().expect("a child").is_none(),
            "krunner ended at once"
        );
        assert!(
            Instant::now() < deadline,
            "krunner does not write its ports"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Kernel {
    pub fn agent(&self) -> Agent {
        Agent::connect(self.ports)
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal and waits for the end; the exit code.
    pub fn stop(&mut self, signal: i32) -> Option<i32> {
        // SAFETY: no pointers; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(i32::try_from(self.child.id()).expect("a pid"), signal) };
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // TERM first: behind `unshare` or the like only krunner itself knows its children.
            // SAFETY: no pointers; the child has not been waited for, so the pid is its own.
            unsafe {
                libc::kill(
                    i32::try_from(self.child.id()).expect("a pid"),
                    libc::SIGTERM,
                )
            };
            let deadline = Instant::now() + Duration::from_secs(3);
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _gone = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

/// A plain Python kernel on the system's Python.
pub fn plain_python() -> Kernel {
    Builder::new("python", Some("/usr/bin/python3"))
        .env("BACKENDAI_PYTHON_LEVEL", "plain")
        .start()
}

/// A kernel without queries.
pub fn shell() -> Kernel {
    Builder::new("app", None).start()
}
