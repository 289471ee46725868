//! A socket before dockerd's own that notes which calls are made through it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// The socket; dropping it takes its file away.
#[derive(Debug)]
pub struct CallsSocket {
    path: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl CallsSocket {
    /// A socket beside that of a daemon.
    pub fn before(daemon: &Path) -> Self {
        let name = format!("calls-{}.sock", uuid::Uuid::new_v4().simple());
        let path = daemon.with_file_name(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let (noted, daemon) = (Arc::clone(&calls), daemon.to_owned());
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let daemon = UnixStream::connect(&daemon).expect("the daemon listens");
                serve(client, daemon, &noted);
            }
        });
        Self { path, calls }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The calls since they were taken, as `POST /containers/ID/kill`: without the version and the query.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no panic while held").clone()
    }

    /// Takes the calls.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("no panic while held"))
    }
}

impl Drop for CallsSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Passes on both directions of a connection; notes the calls.
fn serve(client: UnixStream, daemon: UnixStream, calls: &Arc<Mutex<Vec<String>>>) {
    let (mut answers, mut asker) = (
        daemon.try_clone().expect("a socket"),
        client.try_clone().expect("a socket"),
    );
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut asker);
        let _ = asker.shutdown(Shutdown::Both);
    });
    let calls = Arc::clone(calls);
    thread::spawn(move || {
        let (mut client, mut daemon) = (client, daemon);
        let mut requests = Requests::default();
        let mut piece = vec![0; 1 << 16];
        while let Ok(size @ 1..) = client.read(&mut piece) {
            let new = requests.read(&piece[..size]);
            calls.lock().expect("no panic while held").extend(new);
            if daemon.write_all(&piece[..size]).is_err() {
                break;
            }
        }
        let _ = daemon.shutdown(Shutdown::Both);
    });
}

/// Requests of HTTP/1.1, one after the other.
#[derive(Default)]
struct Requests {
    rest: Vec<u8>,
    /// Bytes of a body that are still to come.
    body: usize,
}

impl Requests {
    /// The requests whose heads end in this piece.
    fn read(&mut self, piece: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(piece);
        let mut calls = Vec::new();
        loop {
            let skipped = self.body.min(self.rest.len());
            self.rest.drain(..skipped);
            self.body -= skipped;
            let end = self.rest.windows(4).position(|it| it == b"\r\n\r\n");
            let (0, Some(end)) = (self.body, end) else {
                return calls;
            };
            let head: Vec<u8> = self.rest.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            // A body without a length is a stream to the connection's end.
            let chunked = head.contains("transfer-encoding:");
            self.body = match length {
                _ if chunked => usize::MAX,
                Some(length) => length.trim().parse().expect("a length"),
                None => 0,
            };
            calls.push(call(&head));
        }
    }
}

/// Method and path of a request's head.
fn call(head: &str) -> String {
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default().to_uppercase();
    let path = words.next().unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let path = match path.strip_prefix("/v1.").and_then(|it| it.split_once('/')) {
        Some((_, path)) => format!("/{path}"),
        None => path.to_owned(),
    };
    format!("{method} {path}")
}
