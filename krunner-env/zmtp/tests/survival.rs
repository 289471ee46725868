//! PUSH and PULL against libzmq whose processes die, return, are replaced, or are not ZeroMQ at all.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{
    FreePort, Peer, SAY_ALL, eventually, numbered, pull_numbers, push_settled, quick, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zmtp::net::{AsyncPull, AsyncPush, NetConfig};
use zmtp::{Config, Message};

const LINGER: Duration = Duration::from_secs(20);

#[tokio::test]
async fn records_made_while_the_peer_is_away_are_kept_in_order() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = push.local_addr().unwrap();
        let script = format!("s = sock('PULL', 'connect')\n{SAY_ALL}");
        for round in 0..2 {
            // In the second round the first peer has come, gone, and is noticed to be gone although nothing is sent.
            eventually(|| push.status().ready_peers == 0).await;
            for number in 0..8 {
                push.send(Message::from([format!("{round}-{number}")]))
                    .await
                    .unwrap();
            }
            push.send(Message::from(["last"])).await.unwrap();
            let mut peer = Peer::run(address, &script);
            for number in 0..8 {
                assert_eq!(peer.line().await, format!("{round}-{number}"));
            }
            assert_eq!(peer.line().await, "last");
            peer.end().await;
        }
    })
    .await;
}

#[tokio::test]
async fn records_after_a_peer_was_killed_all_reach_the_next() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = push.local_addr().unwrap();
        let script = format!("s = sock('PULL', 'connect')\n{SAY_ALL}");
        let mut first = Peer::run(address, &script);
        push.send(numbered(0)).await.unwrap();
        assert_eq!(first.line().await, "0");
        first.kill().await;
        eventually(|| push.status().ready_peers == 0).await;
        for number in 1..9 {
            push.send(numbered(number)).await.unwrap();
        }
        let mut second = Peer::run(address, &script);
        for number in 1..9 {
            assert_eq!(second.line().await, number.to_string());
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_peer_had_not_taken_from_us_is_sent_again_whole_and_in_order() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = push.local_addr().unwrap();
        let mut first = Peer::run(address, "s = sock('PULL', 'connect', RCVHWM=1)\ns.recv()\nsay('got'); hear()");
        let body = Bytes::from(vec![b'x'; 100_000]);
        let record = |number: usize| Message::from([Bytes::from(number.to_string()), body.clone()]);
        push.send(record(0)).await.unwrap();
        assert_eq!(first.line().await, "got");
        // The peer reads no more: its buffers fill, then our queue.
        let mut count = 1;
        loop {
            match push.try_send(record(count)) {
                Ok(()) => count += 1,
                Err(_full) if push_settled(&push).await => break,
                Err(_full) => {}
            }
            assert!(count < 5000, "the queue is not bounded");
        }
        let unsent = push.queued();
        first.kill().await;
        eventually(|| push.status().ready_peers == 0).await;
        let script = "s = sock('PULL', 'connect')\nwhile True:\n  n, b = s.recv_multipart()\n  say(n.decode(), len(b))";
        let mut second = Peer::run(address, script);
        for number in count - unsent..count {
            assert_eq!(second.line().await, format!("{number} 100000"));
        }
        push.wait_drained().await;
    })
    .await;
}

#[tokio::test]
async fn a_connecting_push_finds_a_bound_peer_that_died_and_returned() {
    within(async {
        let port = FreePort::new();
        let script = format!("s = sock('PULL', 'bind')\n{SAY_ALL}");
        let push = AsyncPush::connect(port.address().to_string(), quick());
        for round in 0..3 {
            push.send(numbered(round * 2)).await.unwrap();
            let mut peer = Peer::run(port.address(), &script);
            push.send(numbered(round * 2 + 1)).await.unwrap();
            assert_eq!(peer.line().await, (round * 2).to_string());
            assert_eq!(peer.line().await, (round * 2 + 1).to_string());
            peer.kill().await;
            eventually(|| push.status().ready_peers == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connecting_pull_finds_a_bound_peer_that_died_and_returned() {
    within(async {
        let port = FreePort::new();
        let pull = AsyncPull::connect(port.address().to_string(), quick());
        for _ in 0..3 {
            let peer = Peer::run(
                port.address(),
                "s = sock('PUSH', 'bind')\ns.send(b'0'); s.send(b'1'); hear()",
            );
            pull_numbers(&pull, 0..2).await;
            peer.kill().await;
        }
    })
    .await;
}

#[tokio::test]
async fn records_of_a_restarted_bound_push_wait_for_the_peer_to_come_back() {
    within(async {
        let port = FreePort::new();
        let address = port.address().to_string();
        let mut peer = Peer::run(
            port.address(),
            &format!("s = sock('PULL', 'connect')\n{SAY_ALL}"),
        );
        for round in ["0", "1", "last"] {
            let push = AsyncPush::bind(&address, quick()).await.unwrap();
            push.send(Message::from([round])).await.unwrap();
            assert_eq!(push.close(LINGER).await, 0);
            assert_eq!(peer.line().await, round);
        }
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn garbage_and_half_open_connections_are_closed_and_harm_nobody() {
    within(async {
        let socket = Config {
            handshake_timeout: Duration::from_millis(300),
            ..Config::default()
        };
        let push = AsyncPush::bind("127.0.0.1:0", NetConfig { socket, ..quick() })
            .await
            .unwrap();
        let address = push.local_addr().unwrap();
        let mut peer = Peer::run(address, &format!("s = sock('PULL', 'connect')\n{SAY_ALL}"));
        push.send(numbered(0)).await.unwrap();
        assert_eq!(peer.line().await, "0");

        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"\xff\0\0\0\0\0\0\0\0\x7f\x03")
            .await
            .unwrap();
        for stream in [&mut garbage, &mut silent, &mut half] {
            // Our greeting comes, and then the end: by FIN, or by RST where we had not read everything.
            let mut greeting = Vec::new();
            let _end = stream.read_to_end(&mut greeting).await;
        }
        assert_eq!(push.status().ready_peers, 1);
        push.send(Message::from(["last"])).await.unwrap();
        assert_eq!(peer.line().await, "last");
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn of_two_pull_peers_the_newest_gets_every_record() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = push.local_addr().unwrap();
        // The older one never comes back, like a connection that an agent has left behind.
        let script = r"
s = ctx.socket(zmq.PULL)
s.setsockopt(zmq.RECONNECT_IVL, -1)
monitor = s.get_monitor_socket(zmq.EVENT_DISCONNECTED)
s.connect(addr)
say(s.recv().decode()); monitor.recv_multipart(); say('closed')
";
        let mut older = Peer::run(address, script);
        push.send(numbered(0)).await.unwrap();
        assert_eq!(older.line().await, "0");
        let mut newer = Peer::run(address, &format!("s = sock('PULL', 'connect')\n{SAY_ALL}"));
        assert_eq!(older.line().await, "closed");
        for number in 1..21 {
            push.send(numbered(number)).await.unwrap();
            assert_eq!(newer.line().await, number.to_string());
        }
        assert_eq!(push.status().ready_peers, 1);
    })
    .await;
}

#[tokio::test]
async fn a_peer_of_the_wrong_type_is_refused_with_a_reason() {
    within(async {
        let push = AsyncPush::bind("127.0.0.1:0", quick()).await.unwrap();
        let _peer = Peer::run(
            push.local_addr().unwrap(),
            "s = sock('SUB', 'connect')\nhear()",
        );
        let reason = "a SUB socket cannot be connected with our PUSH socket";
        eventually(|| push.status().last_error.as_deref() == Some(reason)).await;
        assert_eq!(push.status().ready_peers, 0);
    })
    .await;
}
