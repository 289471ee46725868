//! User input for batch programs: they connect (TCP on 127.0.0.1 as in 19.03, a Unix socket as in 26.x), the session's user is asked,
//! and the line is sent before the connection is closed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fd;
use crate::token::Token;

/// What a program reads that asks while nothing runs (19.03.3 runner).
const UNSUPPORTED: &[u8] = b"<user-input is unsupported>";
/// Programs that may wait at once.
const MOST_WAITING: usize = 256;
/// How long a program may take to receive a line that does not fit into its socket.
const PATIENCE: Duration = Duration::from_millis(200);

/// The two listeners and the programs that wait, the first of which the user has been asked for.
#[derive(Debug)]
pub(crate) struct UserInput {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    path: PathBuf,
    waiting: VecDeque<(u32, Client)>,
    opened: u32,
}

#[derive(Debug)]
enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl UserInput {
    /// Listens where it can: in a strange root one of the two may be impossible, and the other serves.
    pub(crate) fn open(epoll: &Epoll, port: u16, path: &Path) -> Self {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            epoll.add(listener.as_fd(), Token::InputTcp.into(), Interest::READ)?;
            Ok(listener)
        });
        // What a runner that was killed left behind.
        let _absent = std::fs::remove_file(path);
        let unix = UnixListener::bind(path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            epoll.add(listener.as_fd(), Token::InputUnix.into(), Interest::READ)?;
            Ok(listener)
        });
        Self {
            tcp: tcp.ok(),
            unix: unix.ok(),
            path: path.to_owned(),
            waiting: VecDeque::new(),
            opened: 0,
        }
    }

    /// The TCP port, 0 if there is none.
    pub(crate) fn port(&self) -> u16 {
        self.tcp
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
            .map_or(0, |address| address.port())
    }

    /// The path of the Unix socket.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes new connections; while nothing runs, they are told so and closed. True: the user is to be asked now.
    pub(crate) fn accept(&mut self, epoll: &Epoll, running: bool) -> bool {
        let nobody_waited = self.waiting.is_empty();
        while let Some(client) = self.accept_one() {
            if !running || self.waiting.len() >= MOST_WAITING {
                let _gone = send(client, UNSUPPORTED);
                continue;
            }
            let number = self.opened;
            self.opened = self.opened.wrapping_add(1);
            if epoll
                .add(
                    client.as_fd(),
                    Token::InputClient(number).into(),
                    Interest::READ,
                )
                .is_ok()
            {
                self.waiting.push_back((number, client));
            }
        }
        nobody_waited && !self.waiting.is_empty()
    }

    fn accept_one(&self) -> Option<Client> {
        let tcp = self
            .tcp
            .as_ref()
            .and_then(|listener| listener.accept().ok())
            .map(|(stream, _)| Client::Tcp(stream));
        tcp.or_else(|| {
            self.unix
                .as_ref()
                .and_then(|listener| listener.accept().ok())
                .map(|(stream, _)| Client::Unix(stream))
        })
    }

    /// Something happened on a waiting connection. True: the first one has gone away, and the user is to be asked for the next.
    pub(crate) fn check(&mut self, number: u32, buffer: &mut [u8]) -> bool {
        let Some(index) = self.waiting.iter().position(|(known, _)| *known == number) else {
            return false;
        };
        match fd::read(self.waiting[index].1.as_fd(), buffer) {
            Ok(Some(0)) | Err(_) => {
                self.waiting.remove(index);
                index == 0 && !self.waiting.is_empty()
            }
            // Programs have nothing to say here; what they say is passed over.
            Ok(_) => false,
        }
    }

    /// Whether a program waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers the first program. True: another waits, and the user is to be asked again.
    pub(crate) fn answer(&mut self, text: &str) -> bool {
        if let Some((_, client)) = self.waiting.pop_front() {
            // A program that has gone away needs no answer.
            let _gone = send(client, text.as_bytes());
        }
        self.is_waiting()
    }

    /// The run is over: who still waits gets nothing.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

impl Drop for UserInput {
    fn drop(&mut self) {
        if self.unix.is_some() {
            let _absent = std::fs::remove_file(&self.path);
        }
    }
}

fn send(client: Client, data: &[u8]) -> io::Result<()> {
    match client {
        Client::Tcp(mut stream) => {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(data)
        }
        Client::Unix(mut stream) => {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(data)
        }
    }
}
