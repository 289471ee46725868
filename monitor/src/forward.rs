//! Listens on a container's host ports in one network namespace and hands connections on to the container from another
//! one: for agents of ordinary users, whose rules of forwarding reach no further than a namespace of their own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::hold::begin_of;

/// First word of the command line.
const WORD: &str = "__forward";
/// What one direction of a connection keeps at most.
const BUFFER: usize = 64 << 10;
/// Connections at once; more wait in their listeners.
const MOST: usize = 1000;

/// The ports of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// File to write this process into, as `PID TICKS`, before anything else.
    pub file: PathBuf,
    /// The network namespace from which the container is reached.
    pub netns: PathBuf,
    /// The container's address.
    pub address: Ipv4Addr,
    /// Host port and container port of each.
    pub ports: Vec<(u16, u16)>,
}

impl Forward {
    /// What the program prints first, when its file is written.
    pub const BEGUN: &str = "begun\n";
    /// What it prints when it listens; anything else is why it does not.
    pub const READY: &str = "ready\n";

    /// The command line, without the program's name.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut args = vec![
            WORD.into(),
            self.file.clone().into(),
            self.netns.clone().into(),
            self.address.to_string().into(),
        ];
        let ports = self.ports.iter();
        args.extend(ports.map(|(host, inside)| format!("{host}:{inside}").into()));
        args
    }

    /// Reads the command line back.
    #[must_use]
    pub fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        if args.next()? != WORD {
            return None;
        }
        Some(Self {
            file: args.next()?.into(),
            netns: args.next()?.into(),
            address: args.next()?.to_str()?.parse().ok()?,
            ports: args.map(|arg| pair(arg.to_str()?)).collect::<Option<_>>()?,
        })
    }

    /// Listens, says so on standard output, and hands connections on until it is killed.
    ///
    /// # Errors
    /// Why it does not, which it has said on standard output.
    pub fn run(&self) -> io::Result<()> {
        let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let listening = self.tell().and_then(|()| {
            out.write_all(Self::BEGUN.as_bytes())?;
            self.listen()
        });
        let said = match &listening {
            Ok(_) => Self::READY.to_owned(),
            Err(error) => error.to_string(),
        };
        out.write_all(said.as_bytes())?;
        drop(out);
        // Whoever reads to the end must not wait for ours.
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        self.serve(&listening?)
    }

    fn tell(&self) -> io::Result<()> {
        let pid = std::process::id().to_string();
        let began = begin_of(Path::new("/proc"), &pid).unwrap_or_default();
        fs::write(&self.file, format!("{pid} {began}"))
    }

    fn listen(&self) -> io::Result<Vec<TcpListener>> {
        let listeners = self.ports.iter().map(|(host, _)| {
            let listen = || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *host))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            listen().map_err(|error: io::Error| {
                io::Error::new(error.kind(), format!("listen on host port {host}: {error}"))
            })
        });
        let listeners = listeners.collect::<io::Result<_>>()?;
        let netns = File::open(&self.netns)?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(listeners)
    }

    fn serve(&self, listeners: &[TcpListener]) -> io::Result<()> {
        let mut connections: Vec<Connection> = Vec::new();
        loop {
            let accepting = connections.len() < MOST;
            let mut fds: Vec<PollFd<'_>> = Vec::new();
            if accepting {
                fds.extend(listeners.iter().map(|it| PollFd::new(it, PollFlags::IN)));
            }
            for connection in &connections {
                let watched = connection.watched();
                fds.extend(watched.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let (asked, moving) = ready.split_at(if accepting { listeners.len() } else { 0 });
            let mut moving = moving.chunks(2).map(|both| both.contains(&true));
            connections.retain_mut(|it| !moving.next().unwrap_or(false) || it.go_on());
            let asked = asked.iter().zip(listeners).zip(&self.ports);
            for ((_, listener), (_, inside)) in asked.filter(|((asked, _), _)| **asked) {
                let address = SocketAddrV4::new(self.address, *inside);
                // Without a way to the container the caller sees its connection closed.
                connections.extend(accept(listener, address));
            }
        }
    }
}

fn pair(text: &str) -> Option<(u16, u16)> {
    let (host, inside) = text.split_once(':')?;
    Some((host.parse().ok()?, inside.parse().ok()?))
}

/// Takes a caller and begins a connection to the container for it.
fn accept(listener: &TcpListener, address: SocketAddrV4) -> Option<Connection> {
    let (caller, _) = listener.accept().ok()?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).ok()?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(_) => return None,
    }
    let container = TcpStream::from(socket);
    caller.set_nonblocking(true).ok()?;
    for stream in [&caller, &container] {
        stream.set_nodelay(true).ok()?;
    }
    Some(Connection {
        caller,
        container,
        connecting: true,
        to_container: Direction::default(),
        to_caller: Direction::default(),
    })
}

/// A caller and the container.
#[derive(Debug)]
struct Connection {
    caller: TcpStream,
    container: TcpStream,
    connecting: bool,
    to_container: Direction,
    to_caller: Direction,
}

impl Connection {
    /// What to wait for on both sides.
    fn watched(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let flags = |from: &Direction, to: &Direction| {
            let mut flags = PollFlags::empty();
            if from.wants_input() {
                flags |= PollFlags::IN;
            }
            if to.wants_output() {
                flags |= PollFlags::OUT;
            }
            flags
        };
        let container = if self.connecting {
            PollFlags::OUT
        } else {
            flags(&self.to_caller, &self.to_container)
        };
        let caller = flags(&self.to_container, &self.to_caller);
        let both = [(&self.caller, caller), (&self.container, container)];
        // Linux always tells of a peer that has gone; of a side that nothing is wanted of, that would be told without end.
        let useful =
            |(stream, flags): &(_, PollFlags)| (!flags.is_empty()).then_some((*stream, *flags));
        let any = both.iter().find_map(useful).unwrap_or(both[0]);
        both.each_ref().map(|it| {
            let (stream, flags): (&TcpStream, _) = useful(it).unwrap_or(any);
            (stream.as_fd(), flags)
        })
    }

    /// Moves what can be moved; false when the connection is over.
    fn go_on(&mut self) -> bool {
        if self.connecting {
            match self.container.take_error() {
                Ok(None) if self.container.peer_addr().is_ok() => self.connecting = false,
                Ok(None) => return true,
                _ => return false,
            }
        }
        let there = self.to_container.go_on(&self.caller, &self.container);
        let back = self.to_caller.go_on(&self.container, &self.caller);
        there.is_ok() && back.is_ok() && !(self.to_container.done && self.to_caller.done)
    }
}

/// One direction of a connection: what was read and not yet written.
#[derive(Debug, Default)]
struct Direction {
    /// Allocated when the first byte comes.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// Nothing comes any more.
    ended: bool,
    /// And the receiver knows.
    done: bool,
}

impl Direction {
    fn wants_input(&self) -> bool {
        !self.ended && self.begin == self.end
    }

    fn wants_output(&self) -> bool {
        self.begin < self.end
    }

    /// Reads and writes until one side has to wait.
    fn go_on(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        loop {
            while self.wants_output() {
                match to.write(&self.buffer[self.begin..self.end]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(written) => self.begin += written,
                    Err(error) => return patient(error),
                }
            }
            if self.ended {
                if !self.done {
                    self.done = true;
                    return match to.shutdown(Shutdown::Write) {
                        // The receiver has gone away already.
                        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
                        other => other,
                    };
                }
                return Ok(());
            }
            self.buffer.resize(BUFFER, 0);
            match from.read(&mut self.buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => (self.begin, self.end) = (0, read),
                Err(error) => return patient(error),
            }
        }
    }
}

/// Having to wait is no error.
fn patient(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Hands connections on to `serve` in this namespace; gives an address to call.
    fn forwarded(serve: impl Fn(TcpStream) + Send + 'static) -> std::net::SocketAddr {
        let container = TcpListener::bind("127.0.0.1:0").expect("bind");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("address");
        let inside = container.local_addr().expect("address").port();
        thread::spawn(move || container.incoming().flatten().for_each(serve));
        let forward = Forward {
            file: "/none".into(),
            netns: "/none".into(),
            address: Ipv4Addr::LOCALHOST,
            ports: vec![(address.port(), inside)],
        };
        thread::spawn(move || forward.serve(&[listener]));
        address
    }

    #[test]
    fn a_command_line_is_read_back() {
        let forward = Forward {
            file: "/a b".into(),
            netns: "/n".into(),
            address: Ipv4Addr::new(10, 0, 0, 2),
            ports: vec![(30000, 2000), (30001, 2001)],
        };
        let args = forward.args();
        assert_eq!(Forward::from_args(args.into_iter()), Some(forward));
        let wrong = ["__forward", "/f", "/n", "10.0.0.2", "x"];
        assert_eq!(
            Forward::from_args(wrong.map(OsString::from).into_iter()),
            None
        );
    }

    #[test]
    fn many_bytes_go_there_and_back_and_each_side_may_end_first() {
        let address = forwarded(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("read");
            stream.write_all(&all).expect("write");
        });
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let sent = sent.clone();
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).expect("connect");
                    stream.write_all(&sent).expect("write");
                    stream.shutdown(Shutdown::Write).expect("shutdown");
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).expect("read");
                    assert!(back == sent, "{} bytes of {}", back.len(), sent.len());
                })
            })
            .collect();
        for caller in callers {
            caller.join().expect("no panic");
        }
    }

    #[test]
    fn a_container_that_speaks_first_and_closes_is_heard_to_its_end() {
        let address = forwarded(|mut stream| stream.write_all(b"hello").expect("write"));
        let mut heard = String::new();
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.read_to_string(&mut heard).expect("read");
        assert_eq!(heard, "hello");
    }

    #[test]
    fn a_port_where_nobody_listens_closes_the_callers_connection() {
        let closed = TcpListener::bind("127.0.0.1:0").expect("bind");
        let inside = closed.local_addr().expect("address").port();
        drop(closed);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("address");
        let forward = Forward {
            file: "/none".into(),
            netns: "/none".into(),
            address: Ipv4Addr::LOCALHOST,
            ports: vec![(0, inside)],
        };
        thread::spawn(move || forward.serve(&[listener]));
        let mut stream = TcpStream::connect(address).expect("connect");
        let mut heard = Vec::new();
        // Closed, with or without a reset.
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.is_empty());
    }
}
