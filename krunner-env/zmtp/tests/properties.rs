//! Properties of the codec and of the PUSH queue, for arbitrary messages, pieces and deaths.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../fuzz/body.rs"]
mod body;

use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use zmtp::{Config, Connection, Event, FrameDecoder, Message, PeerId, PushSocket, SocketType};

fn message() -> impl Strategy<Value = Message> {
    let frame = prop_oneof![
        vec(any::<u8>(), 0..300),
        vec(any::<u8>(), 0..3),
        Just(vec![7; 40_000])
    ];
    vec(frame, 1..4).prop_map(|frames| frames.into_iter().collect())
}

/// Cuts the bytes at the given places, which repeat.
fn pieces<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    sizes.iter().cycle().map_while(move |&size| {
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What a PULL that trusts us sends until it is ready.
fn hello() -> Vec<u8> {
    let mut peer = Connection::new(SocketType::Pull, &Config::default(), Instant::now());
    let greeting = peer.output().to_vec();
    peer.written(greeting.len());
    peer.receive(&greeting);
    assert_eq!(peer.next_event(), Ok(None));
    [&greeting, peer.output()].concat()
}

fn join(push: &mut PushSocket) -> PeerId {
    let peer = push.open(Instant::now());
    push.receive(peer, &hello());
    peer
}

/// The messages in all that was written to one peer; a cut last one is left out.
fn received(stream: &[u8]) -> Vec<Message> {
    let mut pull = Connection::new(SocketType::Pull, &Config::default(), Instant::now());
    pull.receive(stream);
    let events = std::iter::from_fn(|| pull.next_event().expect("we write valid ZMTP"));
    events
        .filter_map(|event| {
            if let Event::Message(message) = event {
                Some(message)
            } else {
                None
            }
        })
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Write(usize),
    PeerDies,
    NewerPeer,
    Stranger(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..2000).prop_map(Step::Push),
        4 => (1usize..3000).prop_map(Step::Write),
        1 => Just(Step::PeerDies),
        1 => Just(Step::NewerPeer),
        1 => vec(any::<u8>(), 0..80).prop_map(Step::Stranger),
    ]
}

proptest! {
    #[test]
    fn messages_survive_any_cutting_of_the_stream(messages in vec(message(), 0..12), sizes in vec(1usize..5000, 1..8)) {
        let mut push = PushSocket::new(Config::default());
        let peer = join(&mut push);
        for message in &messages {
            push.try_push(message.clone()).unwrap();
        }
        let mut stream = Vec::new();
        while !push.output(peer).is_empty() {
            let count = push.output(peer).len();
            stream.extend_from_slice(push.output(peer));
            push.written(peer, count);
        }
        let mut pull = Connection::new(SocketType::Pull, &Config::default(), Instant::now());
        let mut seen = Vec::new();
        for piece in pieces(&stream, &sizes) {
            pull.receive(piece);
            while let Some(event) = pull.next_event().unwrap() {
                if let Event::Message(message) = event {
                    seen.push(message);
                }
            }
        }
        prop_assert!(seen == messages);
    }

    #[test]
    fn every_message_is_written_whole_exactly_once_and_in_order_whoever_dies(steps in vec(step(), 0..60)) {
        let mut push = PushSocket::new(Config { batch: 4000, ..Config::default() });
        let mut streams: Vec<(PeerId, Vec<u8>)> = Vec::new();
        let mut pushed = Vec::new();
        let write = |push: &mut PushSocket, streams: &mut Vec<(PeerId, Vec<u8>)>, mut left: usize| {
            let Some((peer, stream)) = streams.last_mut() else { return };
            while left > 0 && !push.output(*peer).is_empty() {
                let count = push.output(*peer).len().min(left);
                stream.extend_from_slice(&push.output(*peer)[..count]);
                push.written(*peer, count);
                left -= count;
            }
        };
        for step in steps {
            match step {
                Step::Push(size) => {
                    let message = Message::from([pushed.len().to_string(), "x".repeat(size)]);
                    push.try_push(message.clone()).unwrap();
                    pushed.push(message);
                }
                Step::Write(count) => write(&mut push, &mut streams, count),
                Step::PeerDies => {
                    if let Some((peer, _)) = streams.last() {
                        push.closed(*peer);
                    }
                }
                Step::NewerPeer => streams.push((join(&mut push), Vec::new())),
                Step::Stranger(bytes) => {
                    let stranger = push.open(Instant::now());
                    push.receive(stranger, &bytes);
                    push.closed(stranger);
                }
            }
        }
        streams.push((join(&mut push), Vec::new()));
        write(&mut push, &mut streams, usize::MAX);
        prop_assert!(push.is_drained());
        prop_assert_eq!(push.queued_bytes(), 0);
        let seen: Vec<Message> = streams.iter().flat_map(|(_, stream)| received(stream)).collect();
        prop_assert!(seen == pushed);
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_socket(data in vec(any::<u8>(), 0..600)) {
        body::run(&data);
    }

    #[test]
    fn valid_frames_of_arbitrary_content_never_panic_a_socket(
        kind in any::<u8>(),
        chunk in any::<u8>(),
        frames in vec((0u8..8, vec(any::<u8>(), 0..40), any::<bool>()), 0..20),
    ) {
        const COMMANDS: [&[u8]; 6] = [b"\x05READY", b"\x04PING", b"\x05ERROR", b"\x09SUBSCRIBE", b"\x06CANCEL", b""];
        let mut data = vec![kind | 4, chunk];
        for (flags, body, named) in frames {
            let name = if named { COMMANDS[body.len() % COMMANDS.len()] } else { b"" };
            let size = u8::try_from(name.len() + body.len()).unwrap();
            data.push(flags);
            if flags & 2 != 0 {
                data.extend_from_slice(&[0; 7]);
            }
            data.push(size);
            data.extend_from_slice(name);
            data.extend_from_slice(&body);
        }
        body::run(&data);
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_frame_decoder(data in vec(any::<u8>(), 0..600), sizes in vec(1usize..50, 1..5)) {
        let mut decoder = FrameDecoder::default();
        for piece in pieces(&data, &sizes) {
            decoder.feed(piece);
            while let Ok(Some(frame)) = decoder.next_frame(100) {
                prop_assert!(frame.body.len() <= 100);
            }
        }
    }
}
