//! The sockets for tokio among themselves: waiting, cancelling, closing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use support::{FreePort, eventually, numbered, quick, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zmtp::net::{AsyncPull, AsyncPush, NetConfig, SendError};
use zmtp::{Config, Message};

const LINGER: Duration = Duration::from_secs(20);

/// A queue that holds exactly `count` numbered messages.
fn holding(count: usize) -> NetConfig {
    let send_limit = count * numbered(0).cost();
    NetConfig {
        socket: Config {
            send_limit,
            ..Config::default()
        },
        ..quick()
    }
}

/// A PUSH that connects to where nobody is; keep the port.
fn lonely(config: NetConfig) -> (AsyncPush, FreePort) {
    let port = FreePort::new();
    (AsyncPush::connect(port.address().to_string(), config), port)
}

#[tokio::test]
async fn a_name_is_resolved() {
    within(async {
        let pull = AsyncPull::bind("tcp://*:0", quick()).await.unwrap();
        let port = pull.local_addr().unwrap().port();
        let push = AsyncPush::connect(format!("tcp://localhost:{port}"), quick());
        push.send(numbered(0)).await.unwrap();
        assert_eq!(pull.recv().await, Some(numbered(0)));
    })
    .await;
}

#[tokio::test]
async fn an_address_without_meaning_is_told() {
    within(async {
        assert!(AsyncPull::bind("nowhere", quick()).await.is_err());
        let push = AsyncPush::connect("nowhere", quick());
        let told = |error: String| error.starts_with("cannot connect to nowhere: ");
        eventually(|| push.status().last_error.is_some_and(told)).await;
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_recv_loses_nothing() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let push = AsyncPush::connect(pull.local_addr().unwrap().to_string(), quick());
        let mut expected = 0;
        while expected < 500 {
            push.send(numbered(expected)).await.unwrap();
            tokio::select! {
                biased;
                message = pull.recv() => panic!("nothing can have come within one poll: {message:?}"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(pull.recv().await, Some(numbered(expected)));
            expected += 1;
        }
        assert_eq!(pull.try_recv(), None);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_send_sends_nothing() {
    within(async {
        let (push, port) = lonely(holding(1));
        push.send(numbered(0)).await.unwrap();
        tokio::select! {
            biased;
            _ = push.send(numbered(1)) => panic!("the queue is full"),
            () = std::future::ready(()) => {}
        }
        let pull = AsyncPull::bind(&port.address().to_string(), quick())
            .await
            .unwrap();
        assert_eq!(pull.recv().await, Some(numbered(0)));
        push.send(numbered(2)).await.unwrap();
        assert_eq!(pull.recv().await, Some(numbered(2)));
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_heartbeat_first() {
    within(async {
        let (push, port) = lonely(holding(3));
        push.try_send(numbered(0)).unwrap();
        push.try_send_droppable(numbered(1)).unwrap();
        push.try_send_droppable(numbered(2)).unwrap();
        push.try_send_droppable(numbered(3)).unwrap();
        push.send(numbered(4)).await.unwrap();
        assert_eq!(push.queued(), 3);
        push.retain(|message| *message != numbered(3));
        push.send(numbered(5)).await.unwrap();
        assert_eq!(
            push.try_send(numbered(6)),
            Err(SendError::Full(numbered(6)))
        );
        let pull = AsyncPull::bind(&port.address().to_string(), quick())
            .await
            .unwrap();
        for number in [0, 4, 5] {
            assert_eq!(pull.recv().await, Some(numbered(number)));
        }
        eventually(|| push.queued_bytes() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn closing_ends_waiting_senders_and_receivers() {
    within(async {
        let (push, _port) = lonely(holding(1));
        push.send(numbered(0)).await.unwrap();
        let (sent, unsent) =
            tokio::join!(push.send(numbered(1)), push.close(Duration::from_millis(1)));
        assert_eq!(sent, Err(SendError::Closed(numbered(1))));
        assert_eq!(unsent, 1);

        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let (received, _) = tokio::join!(pull.recv(), pull.close(Duration::ZERO));
        assert_eq!(received, None);
    })
    .await;
}

#[tokio::test]
async fn received_messages_outlive_the_close() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let push = AsyncPush::connect(pull.local_addr().unwrap().to_string(), quick());
        push.send(numbered(0)).await.unwrap();
        push.send(numbered(1)).await.unwrap();
        assert_eq!(pull.recv().await, Some(numbered(0)));
        assert_eq!(push.close(LINGER).await, 0);
        eventually(|| pull.status().ready_peers == 0).await;
        pull.close(LINGER).await;
        assert_eq!(pull.recv().await, Some(numbered(1)));
        assert_eq!(pull.recv().await, None);
    })
    .await;
}

#[tokio::test]
async fn dropping_a_socket_ends_its_connections_and_frees_its_port() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = pull.local_addr().unwrap();
        let push = AsyncPush::connect(address.to_string(), quick());
        push.wait_ready().await;
        drop(pull);
        eventually(|| push.status().ready_peers == 0).await;
        let again = AsyncPull::bind(&address.to_string(), quick())
            .await
            .unwrap();
        again.wait_ready().await;
        drop(push);
        eventually(|| again.status().ready_peers == 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_zmtp_is_tried_again() {
    within(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let push = AsyncPush::connect(address.to_string(), quick());
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _fin_or_rst = stream.read_to_end(&mut rest).await;
        }
        let reason = "the peer does not speak ZMTP";
        eventually(|| push.status().last_error.as_deref() == Some(reason)).await;
    })
    .await;
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_handshake_limit() {
    within(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = Config {
            handshake_timeout: Duration::from_millis(50),
            ..Config::default()
        };
        let config = NetConfig { socket, ..quick() };
        let push = AsyncPush::connect(listener.local_addr().unwrap().to_string(), config);
        let (silent, _) = listener.accept().await.unwrap();
        let (_second, _) = listener.accept().await.unwrap();
        let reason = "the peer did not finish the handshake in time";
        eventually(|| push.status().last_error.as_deref() == Some(reason)).await;
        drop(silent);
    })
    .await;
}

#[tokio::test]
async fn many_strangers_do_not_keep_a_peer_out() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let address = pull.local_addr().unwrap();
        let mut strangers = Vec::new();
        for _ in 0..100 {
            strangers.push(TcpStream::connect(address).await.unwrap());
        }
        let push = AsyncPush::connect(address.to_string(), quick());
        push.send(numbered(0)).await.unwrap();
        assert_eq!(pull.recv().await, Some(numbered(0)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_producers_share_a_small_queue_without_losing_order() {
    within(async {
        let pull = AsyncPull::bind("127.0.0.1:0", quick()).await.unwrap();
        let push = AsyncPush::connect(pull.local_addr().unwrap().to_string(), holding(4));
        let push = std::sync::Arc::new(push);
        let mut producers = tokio::task::JoinSet::new();
        for producer in 0..8 {
            let push = push.clone();
            producers.spawn(async move {
                for number in 0..500 {
                    push.send(Message::from([format!("{producer}"), format!("{number}")]))
                        .await
                        .unwrap();
                }
            });
        }
        let mut next = [0; 8];
        for _ in 0..8 * 500 {
            let message = pull.recv().await.unwrap();
            let field = |index: usize| {
                std::str::from_utf8(&message.frames()[index])
                    .unwrap()
                    .parse::<usize>()
                    .unwrap()
            };
            assert_eq!(field(1), next[field(0)]);
            next[field(0)] += 1;
        }
        producers.join_all().await;
    })
    .await;
}
