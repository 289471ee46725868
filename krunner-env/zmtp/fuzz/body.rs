//! What a hostile peer can send, to every type of socket: nothing may panic, and the bounds hold.
//! Run by the fuzz target, and by a property test.

use std::time::{Duration, Instant};

use zmtp::{
    Config, Connection, Limits, PubSocket, PullSocket, PushSocket, Receives, Role, Socket,
    SocketType, SubSocket,
};

/// Feeds the bytes to a socket. The first byte says to which type, and whether a good handshake precedes them;
/// the second says in which pieces they come.
pub fn run(data: &[u8]) {
    let [kind, chunk, rest @ ..] = data else {
        return;
    };
    let limits = Limits {
        frame: 4096,
        message: 8192,
        frames: 16,
        subscriptions: 8,
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    let hello = kind & 4 != 0;
    let chunk = usize::from(*chunk) + 1;
    match kind & 3 {
        0 => drop(attack(
            PushSocket::new(config),
            SocketType::Pull,
            hello,
            chunk,
            rest,
        )),
        1 => drain(attack(
            PullSocket::new(config),
            SocketType::Push,
            hello,
            chunk,
            rest,
        )),
        2 => drop(attack(
            PubSocket::new(config),
            SocketType::Sub,
            hello,
            chunk,
            rest,
        )),
        _ => {
            let mut socket = SubSocket::new(config);
            socket.subscribe("");
            drain(attack(socket, SocketType::Pub, hello, chunk, rest));
        }
    }
}

fn attack<R: Role>(
    mut socket: Socket<R>,
    theirs: SocketType,
    hello: bool,
    chunk: usize,
    data: &[u8],
) -> Socket<R> {
    let now = Instant::now();
    let peer = socket.open(now);
    if hello {
        socket.receive(peer, &handshake(theirs));
        assert!(socket.is_ready(peer));
    }
    for piece in data.chunks(chunk) {
        socket.receive(peer, piece);
        let count = socket.output(peer).len();
        socket.written(peer, count.div_ceil(2));
    }
    socket.expire(now + Duration::from_secs(60));
    assert!(socket.is_ready(peer) || !socket.is_open(peer));
    assert_eq!(socket.is_open(peer), socket.next_closed().is_none());
    socket.closed(peer);
    assert!(socket.output(peer).is_empty());
    socket
}

/// What a well-behaved peer of this type sends until it is ready.
fn handshake(kind: SocketType) -> Vec<u8> {
    let mut peer = Connection::new(kind, &Config::default(), Instant::now());
    let greeting = peer.output().to_vec();
    peer.written(greeting.len());
    peer.receive(&greeting);
    assert_eq!(peer.next_event(), Ok(None));
    [&greeting, peer.output()].concat()
}

fn drain<R: Receives>(mut socket: Socket<R>) {
    while let Some(message) = socket.try_recv() {
        assert!(message.size() <= 8192 && (1..=16).contains(&message.frames().len()));
    }
}
