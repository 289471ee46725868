//! PUSH and PULL against libzmq, in both roles: every shape of message arrives, also from and to the late, the slow and the hasty.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{
    FreePort, Peer, SAY_ALL, eventually, numbered, pull_numbers, push_settled, quick, within,
};
use zmtp::net::{AsyncPull, AsyncPush, NetConfig, SendError};
use zmtp::{Config, Message};

const TEN_MB: usize = 10_000_000;
const LINGER: Duration = Duration::from_secs(20);

/// Receives until `last`, saying each message's frames by their lengths.
const SAY_LENGTHS: &str = r#"
while True:
    frames = s.recv_multipart()
    say(*[len(f) for f in frames])
    if frames[0] == b"last": break
"#;

fn shapes() -> [Message; 6] {
    [
        Message::from([""]),
        Message::from(["one"]),
        Message::from(["", "", ""]),
        Message::from([Bytes::from(vec![b'x'; TEN_MB]), Bytes::new()]),
        Message::from([Bytes::from(vec![b'y'; 255]), Bytes::from(vec![b'z'; 256])]),
        Message::from(["last"]),
    ]
}

const SHAPE_LENGTHS: [&str; 6] = ["0", "3", "0 0 0", "10000000 0", "255 256", "4"];

async fn push_shapes(push: &AsyncPush, peer: &mut Peer) {
    for message in shapes() {
        push.send(message).await.unwrap();
    }
    for expected in SHAPE_LENGTHS {
        assert_eq!(peer.line().await, expected);
    }
}

#[tokio::test]
async fn a_bound_push_sends_empty_large_and_many_frames() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let mut peer = Peer::run(
            push.local_addr().unwrap(),
            &format!("s = sock('PULL', 'connect')\n{SAY_LENGTHS}"),
        );
        push_shapes(&push, &mut peer).await;
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_connecting_push_waits_for_a_peer_that_binds_later() {
    within(async {
        let port = FreePort::new();
        let push = AsyncPush::connect(format!("tcp://{}", port.address()), quick());
        eventually(|| push.status().last_error.is_some()).await;
        let mut peer = Peer::run(
            port.address(),
            &format!("s = sock('PULL', 'bind')\n{SAY_LENGTHS}"),
        );
        push_shapes(&push, &mut peer).await;
        peer.end().await;
    })
    .await;
}

const SEND_SHAPES: &str = r#"
for frames in [[b""], [b"one"], [b"", b"", b""], [b"x" * 10000000, b""], [b"y" * 255, b"z" * 256], [b"last"]]:
    s.send_multipart(frames)
s.close(); ctx.term()
"#;

#[tokio::test]
async fn a_bound_pull_receives_empty_large_and_many_frames() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let peer = Peer::run(
            pull.local_addr().unwrap(),
            &format!("s = sock('PUSH', 'connect')\n{SEND_SHAPES}"),
        );
        for expected in shapes() {
            assert!(pull.recv().await == Some(expected), "another message came");
        }
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_connecting_pull_waits_for_a_peer_that_binds_later() {
    within(async {
        let port = FreePort::new();
        let pull = AsyncPull::connect(port.address().to_string(), quick());
        eventually(|| pull.status().last_error.is_some()).await;
        let peer = Peer::run(
            port.address(),
            &format!("s = sock('PUSH', 'bind')\n{SEND_SHAPES}"),
        );
        for expected in shapes() {
            assert!(pull.recv().await == Some(expected), "another message came");
        }
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_bound_push_is_found_by_a_peer_that_connected_before() {
    within(async {
        let port = FreePort::new();
        let mut peer = Peer::run(
            port.address(),
            &format!("s = sock('PULL', 'connect')\nsay('up')\n{SAY_ALL}"),
        );
        assert_eq!(peer.line().await, "up");
        let push = AsyncPush::bind(&port.address().to_string(), quick())
            .await
            .unwrap();
        push.send(Message::from(["last"])).await.unwrap();
        assert_eq!(peer.line().await, "last");
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_bound_pull_is_found_by_a_peer_that_connected_and_sent_before() {
    within(async {
        let port = FreePort::new();
        let script = "s = sock('PUSH', 'connect')\ns.send(b'0')\nsay('sent')\nhear()";
        let mut peer = Peer::run(port.address(), script);
        assert_eq!(peer.line().await, "sent");
        let pull = AsyncPull::bind(&port.address().to_string(), quick())
            .await
            .unwrap();
        pull_numbers(&pull, 0..1).await;
    })
    .await;
}

#[tokio::test]
async fn messages_go_there_and_back() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let script = format!(
            "i = sock('PULL', 'connect'); addr = 'tcp://{}'; o = sock('PUSH', 'connect')\nwhile True: o.send_multipart(i.recv_multipart())",
            pull.local_addr().unwrap()
        );
        let _peer = Peer::run(push.local_addr().unwrap(), &script);
        for number in 0..200 {
            push.send(numbered(number)).await.unwrap();
            assert_eq!(pull.recv().await, Some(numbered(number)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_blocks_the_sender_and_gets_everything() {
    within(async {
        let socket = Config {
            send_limit: 1 << 20,
            ..Config::default()
        };
        let push = AsyncPush::bind("127.0.0.1:0", NetConfig { socket, ..quick() })
            .await
            .unwrap();
        let script = r"
s = sock('PULL', 'connect', RCVHWM=10, RCVBUF=65536)
s.recv(); say('stalled'); hear()
count = 1
while count < 20000:
    assert int(s.recv()[:8]) == count
    count += 1
say(count)
";
        let mut peer = Peer::run(push.local_addr().unwrap(), script);
        let record = |number: usize| Message::from([format!("{number:08}{}", "x".repeat(4088))]);
        push.send(record(0)).await.unwrap();
        assert_eq!(peer.line().await, "stalled");
        let mut number = 1;
        // 20,000 records are more than the buffers of both ends hold, so the queue must fill.
        let waiting = loop {
            match push.try_send(record(number)) {
                Ok(()) => number += 1,
                Err(SendError::Full(_)) if push_settled(&push).await => {
                    break push.send(record(number));
                }
                Err(SendError::Full(_)) => {}
                Err(closed) => panic!("{closed}"),
            }
            assert!(number < 20_000, "the sender was never blocked");
        };
        peer.tell("go on").await;
        waiting.await.unwrap();
        for number in number + 1..20_000 {
            push.send(record(number)).await.unwrap();
        }
        assert_eq!(peer.line().await, "20000");
    })
    .await;
}

#[tokio::test]
async fn our_slow_reading_blocks_the_peer_and_loses_nothing() {
    within(async {
        let socket = Config {
            receive_limit: 64 << 10,
            ..Config::default()
        };
        let pull = AsyncPull::bind("127.0.0.1:0", NetConfig { socket, ..quick() })
            .await
            .unwrap();
        let script = r"
s = sock('PUSH', 'connect', SNDHWM=10, SNDBUF=65536)
for n in range(10000):
    if n > 0 and not s.poll(500, zmq.POLLOUT): break
    s.send(b'%08d' % n + b'x' * 4088)
say(n)
for n in range(n, 10000): s.send(b'%08d' % n + b'x' * 4088)
s.close(); ctx.term()
";
        let mut peer = Peer::run(pull.local_addr().unwrap(), script);
        let blocked_at: usize = peer.line().await.parse().unwrap();
        assert!(blocked_at < 9999, "the peer was never blocked");
        for number in 0..10_000 {
            let message = pull.recv().await.unwrap();
            assert!(message.frames()[0].starts_with(format!("{number:08}").as_bytes()));
        }
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn sending_and_closing_at_once_delivers_everything() {
    within(async {
        let port = FreePort::new();
        let script = format!("s = sock('PULL', 'bind')\nsay('up')\n{SAY_ALL}");
        let mut peer = Peer::run(port.address(), &script);
        assert_eq!(peer.line().await, "up");
        let push = AsyncPush::connect(port.address().to_string(), quick());
        for number in 0..1000 {
            push.send(numbered(number)).await.unwrap();
        }
        push.send(Message::from(["last"])).await.unwrap();
        assert_eq!(push.close(LINGER).await, 0);
        assert_eq!(
            push.try_send(numbered(0)),
            Err(SendError::Closed(numbered(0)))
        );
        drop(push);
        for number in 0..1000 {
            assert_eq!(peer.line().await, number.to_string());
        }
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn closing_without_a_peer_gives_up_after_the_linger_and_says_what_is_lost() {
    let push = AsyncPush::connect(FreePort::new().address().to_string(), quick());
    push.send(numbered(0)).await.unwrap();
    assert_eq!(push.close(Duration::from_millis(1)).await, 1);
}

#[tokio::test]
async fn a_peer_that_sends_and_exits_at_once_is_heard_to_the_end() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let script = "s = sock('PUSH', 'connect')\nfor n in range(1000): s.send(b'%d' % n)\ns.close(); ctx.term()";
        Peer::run(pull.local_addr().unwrap(), script).end().await;
        pull_numbers(&pull, 0..1000).await;
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_pings_is_answered_and_stays() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let script = r"
s = ctx.socket(zmq.PULL)
s.setsockopt(zmq.HEARTBEAT_IVL, 100); s.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500); s.setsockopt(zmq.RECONNECT_IVL, -1)
s.connect(addr)
say(s.recv().decode()); time.sleep(2.5); say('rested'); say(s.recv().decode())
";
        let mut peer = Peer::run(push.local_addr().unwrap(), script);
        push.send(numbered(0)).await.unwrap();
        assert_eq!(peer.line().await, "0");
        assert_eq!(peer.line().await, "rested");
        assert_eq!(push.status().ready_peers, 1);
        push.send(numbered(1)).await.unwrap();
        assert_eq!(peer.line().await, "1");
        peer.end().await;
    })
    .await;
}
