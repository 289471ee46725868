//! A log that is followed.

use std::time::Duration;

use backendai_agent::runtime::{ContainerId, ExecSpec, LogPart, RuntimeError};
use tokio::sync::mpsc;

use crate::engine::TestEngine;

contract! {
    with fake {
        every_byte_is_followed_once_across_rotations_until_the_end
        the_tail_comes_first_and_a_removed_container_ends_it
        a_container_may_be_followed_before_it_starts
        following_needs_a_container_and_a_reader
    }
}

/// How often the container says something.
const ROUNDS: usize = 12;
/// How many lines, which an engine must not rotate away at once: dockerd keeps some 75 bytes more for each.
const LINES: usize = 100;
/// What makes a line longer.
const FILLING: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";

/// The next bytes that are followed.
async fn next(parts: &mut mpsc::Receiver<LogPart>) -> Option<Vec<u8>> {
    match parts.recv().await? {
        LogPart::Bytes(bytes) => Some(bytes),
        LogPart::Gap => panic!("nothing was let go"),
    }
}

async fn every_byte_is_followed_once_across_rotations_until_the_end(engine: TestEngine) {
    // Each round waits to be asked for, so that none is rotated away before it is read.
    let script = format!(
        "for n in $(seq {ROUNDS}); do while ! [ -e /tmp/go$n ]; do sleep 0.02; done; \
         for i in $(seq {LINES}); do echo round $n {FILLING}; done; done"
    );
    let mut spec = engine.shell(&script);
    spec.log_limit = 64 << 10;
    let id = engine.launch(&spec).await;
    let (sender, mut parts) = mpsc::channel(1);
    let following = engine.runtime.follow(&id, 100, sender);
    let reading = async {
        let mut all = next(&mut parts).await.expect("the first part");
        assert!(all.is_empty());
        for n in 1..=ROUNDS {
            let touch = ExecSpec {
                args: vec!["touch".to_owned(), format!("/tmp/go{n}")],
                env: Vec::new(),
                cwd: "/".into(),
                user: (0, 0),
                time_limit: Duration::from_secs(60),
            };
            engine.runtime.exec(&id, &touch).await.expect("exec");
            let wanted: String = (1..=n)
                .map(|n| format!("round {n} {FILLING}\n").repeat(LINES))
                .collect();
            while all.len() < wanted.len() {
                all.extend(next(&mut parts).await.expect("more"));
            }
            assert_eq!(String::from_utf8(all.clone()).expect("text"), wanted);
        }
        assert_eq!(next(&mut parts).await, None);
    };
    let (followed, ()) = tokio::join!(following, reading);
    followed.expect("it ends with the container");
    engine.close().await;
}

async fn the_tail_comes_first_and_a_removed_container_ends_it(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell("echo one; echo two; sleep 1000"))
        .await;
    while engine.runtime.logs(&id, 100).await.expect("logs") != b"one\ntwo\n" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (sender, mut parts) = mpsc::channel(1);
    let following = engine.runtime.follow(&id, 4, sender);
    let reading = async {
        assert_eq!(next(&mut parts).await.as_deref(), Some(&b"two\n"[..]));
        engine.runtime.remove(&id).await.expect("remove");
        assert_eq!(next(&mut parts).await, None);
    };
    let (followed, ()) = tokio::join!(following, reading);
    followed.expect("it ends with the container");
    engine.close().await;
}

async fn a_container_may_be_followed_before_it_starts(engine: TestEngine) {
    let spec = engine.shell("echo hello");
    let id = engine.runtime.create(&spec).await.expect("create");
    let (sender, mut parts) = mpsc::channel(1);
    let following = engine.runtime.follow(&id, 100, sender);
    let reading = async {
        assert_eq!(next(&mut parts).await.as_deref(), Some(&b""[..]));
        engine.runtime.start(&id).await.expect("start");
        assert_eq!(next(&mut parts).await.as_deref(), Some(&b"hello\n"[..]));
        assert_eq!(next(&mut parts).await, None);
    };
    let (followed, ()) = tokio::join!(following, reading);
    followed.expect("it ends with the container");
    engine.runtime.remove(&id).await.expect("remove");
    engine.close().await;
}

async fn following_needs_a_container_and_a_reader(engine: TestEngine) {
    let (sender, _parts) = mpsc::channel(1);
    let nobody = ContainerId("0".repeat(64));
    let followed = engine.runtime.follow(&nobody, 100, sender).await;
    assert!(
        matches!(followed, Err(RuntimeError::NotFound(_))),
        "{followed:?}"
    );
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let (sender, parts) = mpsc::channel(1);
    let mut parts = Some(parts);
    let following = engine.runtime.follow(&id, 100, sender);
    let leaving = async {
        let mut reader = parts.take().expect("a reader");
        next(&mut reader).await.expect("the first part");
    };
    let (followed, ()) = tokio::join!(following, leaving);
    followed.expect("it ends with its reader");
    engine.runtime.remove(&id).await.expect("remove");
    engine.close().await;
}
