//! What a connection accepts and refuses.

use super::*;
use crate::testing::hello;
use bytes::BytesMut;

fn pull() -> Connection {
    Connection::new(SocketType::Pull, &Config::default(), Instant::now())
}

fn ready_pull() -> Connection {
    let mut connection = pull();
    connection.receive(&hello(SocketType::Push));
    assert!(matches!(
        connection.next_event(),
        Ok(Some(Event::Ready {
            socket_type: SocketType::Push,
            ..
        }))
    ));
    let count = connection.pending();
    connection.written(count);
    connection
}

fn frame(command: bool, more: bool, body: &[u8]) -> Vec<u8> {
    let mut wire = BytesMut::new();
    crate::frame::put_header(&mut wire, command, more, body.len());
    wire.extend_from_slice(body);
    wire.to_vec()
}

fn refusal(bytes: &[u8]) -> ProtocolError {
    let mut connection = pull();
    connection.receive(bytes);
    let error = connection.next_event().expect_err("it must be refused");
    connection.receive(&hello(SocketType::Push));
    assert_eq!(
        connection.next_event(),
        Err(error.clone()),
        "the error is not forgotten"
    );
    error
}

#[test]
fn something_other_than_zmtp_is_refused_at_its_first_byte() {
    assert_eq!(refusal(b"G"), ProtocolError::BadGreeting);
    assert_eq!(
        refusal(b"\xff\0\0\0\0\0\0\0\x01\x7e"),
        ProtocolError::BadGreeting
    );
}

#[test]
fn an_old_version_and_another_mechanism_are_named() {
    assert_eq!(
        refusal(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"),
        ProtocolError::UnsupportedVersion(1)
    );
    let mut curve = greeting(Version::V3_1);
    curve[12..32].copy_from_slice(b"CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(refusal(&curve), ProtocolError::Mechanism("CURVE".into()));
}

#[test]
fn a_socket_of_another_pattern_is_refused_also_if_its_type_is_unknown() {
    for theirs in ["PUB", "PULL", "ROUTER", "X"] {
        let mut body = Vec::from(*b"\x05READY\x0bsocket-type\0\0\0");
        body.push(u8::try_from(theirs.len()).unwrap());
        body.extend_from_slice(theirs.as_bytes());
        let bytes = [&greeting(Version::V3_0)[..], &frame(true, false, &body)].concat();
        let error = ProtocolError::IncompatibleSocket {
            ours: SocketType::Pull,
            theirs: theirs.into(),
        };
        assert_eq!(refusal(&bytes), error);
    }
}

#[test]
fn malformed_commands_are_refused() {
    for body in [
        &b""[..],
        b"\x09READY",
        b"\x05READY\x0bSocket-Type\0\0\0\x05PUSH",
        b"\x05READY\x01",
        b"\x05READY",
    ] {
        let bytes = [&greeting(Version::V3_0)[..], &frame(true, false, body)].concat();
        assert!(
            matches!(refusal(&bytes), ProtocolError::BadCommand(_)),
            "{body:?}"
        );
    }
}

#[test]
fn a_message_before_ready_is_refused() {
    let bytes = [&greeting(Version::V3_0)[..], &frame(false, false, b"early")].concat();
    assert_eq!(refusal(&bytes), ProtocolError::NotReady);
}

#[test]
fn a_peer_that_gives_up_is_quoted() {
    let bytes = [
        &greeting(Version::V3_0)[..],
        &frame(true, false, b"\x05ERROR\x04busy"),
    ]
    .concat();
    assert_eq!(refusal(&bytes), ProtocolError::Refused("busy".into()));
}

#[test]
fn identity_is_told_and_other_properties_and_commands_are_ignored() {
    let mut connection = pull();
    connection.receive(&greeting(Version::V3_1));
    connection.receive(&frame(true, false, b"\x05HELLO"));
    let ready = b"\x05READY\x01X\0\0\0\x01y\x08Identity\0\0\0\x02id\x0bSocket-Type\0\0\0\x04PUSH";
    connection.receive(&frame(true, false, ready));
    let event = Event::Ready {
        socket_type: SocketType::Push,
        identity: Bytes::from_static(b"id"),
    };
    assert_eq!(connection.next_event(), Ok(Some(event)));
    connection.receive(&frame(true, false, b"\x05HELLOxyz"));
    assert_eq!(connection.next_event(), Ok(None));
}

#[test]
fn a_ping_is_answered_with_its_context_even_inside_a_message() {
    let mut connection = ready_pull();
    connection.receive(&frame(false, true, b"a"));
    connection.receive(&frame(true, false, b"\x04PING\0\x0actx"));
    connection.receive(&frame(false, false, b"b"));
    assert_eq!(
        connection.next_event(),
        Ok(Some(Event::Message(Message::from(["a", "b"]))))
    );
    assert_eq!(connection.output(), frame(true, false, b"\x04PONGctx"));
}

#[test]
fn a_handshake_must_end_by_its_deadline() {
    let start = Instant::now();
    let config = Config::default();
    let mut connection = Connection::new(SocketType::Pull, &config, start);
    let deadline = start + config.handshake_timeout;
    assert_eq!(connection.handshake_deadline(), Some(deadline));
    assert_eq!(connection.check_handshake(start), Ok(()));
    assert_eq!(
        connection.check_handshake(deadline),
        Err(ProtocolError::HandshakeTimeout)
    );
    assert_eq!(
        connection.next_event(),
        Err(ProtocolError::HandshakeTimeout)
    );
    let mut connection = ready_pull();
    assert_eq!(connection.handshake_deadline(), None);
    assert_eq!(
        connection.check_handshake(deadline + config.handshake_timeout),
        Ok(())
    );
}

#[test]
fn a_message_is_limited_in_bytes_and_frames() {
    let limits = crate::Limits {
        frame: 10,
        message: 15,
        frames: 2,
        ..crate::Limits::default()
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    for (frames, error) in [
        (
            vec![11],
            ProtocolError::FrameTooLarge {
                size: 11,
                limit: 10,
            },
        ),
        (vec![10, 6], ProtocolError::MessageTooLarge { limit: 15 }),
        (vec![1, 1, 1], ProtocolError::TooManyFrames { limit: 2 }),
    ] {
        let mut connection = Connection::new(SocketType::Pull, &config, Instant::now());
        connection.receive(&hello(SocketType::Push));
        assert!(matches!(
            connection.next_event(),
            Ok(Some(Event::Ready { .. }))
        ));
        for size in frames {
            connection.receive(&frame(false, true, &vec![0; size]));
        }
        assert_eq!(connection.next_event(), Err(error));
    }
}

#[test]
fn only_a_pub_takes_messages_as_subscriptions() {
    let mut publisher = Connection::new(SocketType::Pub, &Config::default(), Instant::now());
    publisher.receive(&hello(SocketType::Sub));
    publisher.receive(&frame(false, false, b"\x01a"));
    publisher.receive(&frame(false, false, b"\x00a"));
    publisher.receive(&frame(true, false, b"\x09SUBSCRIBEb"));
    publisher.receive(&frame(true, false, b"\x06CANCELb"));
    let events: Vec<_> = std::iter::from_fn(|| publisher.next_event().unwrap())
        .skip(1)
        .collect();
    let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
    let expected = [
        Event::Subscribe(a.clone()),
        Event::Unsubscribe(a),
        Event::Subscribe(b.clone()),
        Event::Unsubscribe(b),
    ];
    assert_eq!(events, expected);
    let mut pull = ready_pull();
    pull.receive(&frame(false, false, b"\x01a"));
    assert_eq!(
        pull.next_event(),
        Ok(Some(Event::Message(Message::from(["\x01a"]))))
    );
}
