//! PUB and SUB against libzmq, in both roles and with both ways to subscribe: by message (ZMTP 3.0) and by command (3.1).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use support::{FreePort, Peer, eventually, quick, within};
use zmtp::net::{AsyncPub, AsyncSub, NetConfig};
use zmtp::{Config, Message, Version};

const SAY_ALL: &str = r#"
while True:
    frames = s.recv_multipart()
    say(b"|".join(frames).decode())
    if frames[0] == b"a-last": break
"#;

fn announcing(version: Version) -> NetConfig {
    NetConfig {
        socket: Config {
            version,
            ..Config::default()
        },
        ..quick()
    }
}

async fn publish(publisher: &AsyncPub, peer: &mut Peer) {
    publisher.wait_subscriptions(2).await;
    for topic in ["a-1", "b-2", "c-3", "a-last"] {
        publisher.publish(&Message::from([topic, "body"]));
    }
    for expected in ["a-1|body", "b-2|body", "a-last|body"] {
        assert_eq!(peer.line().await, expected);
    }
}

async fn a_bound_pub_serves_subscribers(version: Version) {
    within(async {
        let publisher = AsyncPub::bind("127.0.0.1:0", announcing(version))
            .await
            .unwrap();
        let script =
            format!("s = sock('SUB', 'connect')\ns.subscribe(b'a'); s.subscribe(b'b')\n{SAY_ALL}");
        let mut peer = Peer::run(publisher.local_addr().unwrap(), &script);
        publish(&publisher, &mut peer).await;
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_bound_pub_takes_subscriptions_as_messages() {
    a_bound_pub_serves_subscribers(Version::V3_0).await;
}

#[tokio::test]
async fn a_bound_pub_takes_subscriptions_as_commands() {
    a_bound_pub_serves_subscribers(Version::V3_1).await;
}

#[tokio::test]
async fn a_connecting_pub_serves_a_bound_subscriber() {
    within(async {
        let port = FreePort::new();
        let publisher = AsyncPub::connect(port.address().to_string(), quick());
        let script =
            format!("s = sock('SUB', 'bind')\ns.subscribe(b'a'); s.subscribe(b'b')\n{SAY_ALL}");
        let mut peer = Peer::run(port.address(), &script);
        publish(&publisher, &mut peer).await;
        peer.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_pub_stops_sending_what_was_unsubscribed() {
    within(async {
        let publisher = AsyncPub::bind("127.0.0.1:0", quick()).await.unwrap();
        let script = "s = sock('SUB', 'connect')\ns.subscribe(b'a'); s.subscribe(b'b'); hear(); s.unsubscribe(b'b'); hear()";
        let mut peer = Peer::run(publisher.local_addr().unwrap(), script);
        publisher.wait_subscriptions(2).await;
        assert_eq!(publisher.publish(&Message::from(["b-1"])), 1);
        peer.tell("unsubscribe").await;
        eventually(|| publisher.publish(&Message::from(["b-2"])) == 0).await;
        assert_eq!(publisher.publish(&Message::from(["a-3"])), 1);
    })
    .await;
}

/// An XPUB shows the subscriptions it gets, then sends three messages of which two match.
const XPUB: &str = r"
say(s.recv().decode('latin1')[1:]); say(s.recv().decode('latin1')[1:])
for topic in [b'a-1', b'c-2', b'b-3']: s.send_multipart([topic, b'body'])
hear()
";

async fn hear_subscribed(subscriber: &AsyncSub, peer: &mut Peer) {
    let mut prefixes = [peer.line().await, peer.line().await];
    prefixes.sort();
    assert_eq!(prefixes, ["a", "b"]);
    assert_eq!(
        subscriber.recv().await,
        Some(Message::from(["a-1", "body"]))
    );
    assert_eq!(
        subscriber.recv().await,
        Some(Message::from(["b-3", "body"]))
    );
}

async fn a_connecting_sub_subscribes_again_at_every_connection(version: Version) {
    within(async {
        let port = FreePort::new();
        let subscriber = AsyncSub::connect(port.address().to_string(), announcing(version));
        subscriber.subscribe(b"a");
        subscriber.subscribe(b"b");
        subscriber.subscribe(b"c");
        subscriber.unsubscribe(b"c");
        for _ in 0..2 {
            let mut peer = Peer::run(port.address(), &format!("s = sock('XPUB', 'bind')\n{XPUB}"));
            hear_subscribed(&subscriber, &mut peer).await;
            peer.kill().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connecting_sub_subscribes_again_at_every_connection_by_messages() {
    a_connecting_sub_subscribes_again_at_every_connection(Version::V3_0).await;
}

#[tokio::test]
async fn a_connecting_sub_subscribes_again_at_every_connection_by_commands() {
    a_connecting_sub_subscribes_again_at_every_connection(Version::V3_1).await;
}

#[tokio::test]
async fn a_bound_sub_receives_from_a_connecting_publisher() {
    within(async {
        let subscriber = AsyncSub::bind("127.0.0.1:0", quick()).await.unwrap();
        subscriber.subscribe(b"a");
        let mut peer = Peer::run(
            subscriber.local_addr().unwrap(),
            &format!("s = sock('XPUB', 'connect')\n{XPUB}"),
        );
        assert_eq!(peer.line().await, "a");
        subscriber.subscribe(b"b");
        assert_eq!(peer.line().await, "b");
        assert_eq!(
            subscriber.recv().await,
            Some(Message::from(["a-1", "body"]))
        );
        assert_eq!(
            subscriber.recv().await,
            Some(Message::from(["b-3", "body"]))
        );
    })
    .await;
}

#[tokio::test]
async fn a_slow_subscriber_misses_messages_and_holds_nobody_up() {
    within(async {
        let socket = Config {
            send_limit: 1 << 20,
            ..Config::default()
        };
        let publisher = AsyncPub::bind("127.0.0.1:0", NetConfig { socket, ..quick() })
            .await
            .unwrap();
        let address = publisher.local_addr().unwrap();
        let script = "s = sock('SUB', 'connect', RCVHWM=1)\ns.subscribe(b''); hear()";
        let _slow = Peer::run(address, script);
        publisher.wait_subscriptions(1).await;
        let record = Message::from([vec![b'x'; 100_000]]);
        // It reads until its buffers are full; from then on messages for it are dropped.
        eventually(|| publisher.publish(&record) == 0).await;
        let mut quick = Peer::run(
            address,
            &format!("s = sock('SUB', 'connect')\ns.subscribe(b'a'); s.subscribe(b'b')\n{SAY_ALL}"),
        );
        publisher.wait_subscriptions(3).await;
        publish(&publisher, &mut quick).await;
    })
    .await;
}
