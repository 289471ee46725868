//! What a container prints is kept, bounded, and told from the end.

use crate::engine::TestEngine;

contract! {
    with fake {
        both_streams_are_kept_each_in_its_order
        the_log_is_bounded_and_keeps_the_end
        the_tail_of_the_log_is_as_long_as_asked
        text_is_kept_byte_for_byte
        a_line_may_be_long_and_the_last_may_lack_its_end
        the_log_can_be_read_while_the_container_runs
    }
}

async fn both_streams_are_kept_each_in_its_order(engine: TestEngine) {
    let log = engine
        .output("for i in $(seq 200); do echo o$i; echo e$i >&2; done")
        .await;
    for stream in ['o', 'e'] {
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.starts_with(stream))
            .collect();
        let wanted: Vec<_> = (1..=200).map(|i| format!("{stream}{i}")).collect();
        assert_eq!(lines, wanted);
    }
    assert_eq!(log.lines().count(), 400);
    engine.close().await;
}

async fn the_log_is_bounded_and_keeps_the_end(engine: TestEngine) {
    let mut spec = engine.shell("yes 0123456789abcdef | head -c 4000000; echo; echo last");
    spec.log_limit = 64 << 10;
    let (_, log) = engine.run(&spec).await;
    // How much less is kept than the limit allows is the engine's affair.
    assert!(
        log.len() <= 64 << 10 && log.len() >= 2 << 10,
        "{}",
        log.len()
    );
    assert!(log.ends_with("\nlast\n"), "{}", &log[log.len() - 40..]);
    engine.close().await;
}

async fn the_tail_of_the_log_is_as_long_as_asked(engine: TestEngine) {
    let id = engine.launch(&engine.shell("echo abcdef")).await;
    engine.runtime.wait(&id).await.expect("wait");
    assert_eq!(engine.runtime.logs(&id, 4).await.expect("logs"), b"def\n");
    assert_eq!(
        engine.runtime.logs(&id, 99).await.expect("logs"),
        b"abcdef\n"
    );
    assert!(engine.runtime.logs(&id, 0).await.expect("logs").is_empty());
    engine.close().await;
}

async fn text_is_kept_byte_for_byte(engine: TestEngine) {
    let script = r"printf 'a\000b \303\274\r\n\t\033[1m\n\n <x>&'";
    let id = engine.launch(&engine.shell(script)).await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 100).await.expect("logs");
    let wanted = "a\0b ü\r\n\t\x1b[1m\n\n <x>&";
    assert_eq!(String::from_utf8_lossy(&log), wanted);
    engine.close().await;
}

async fn a_line_may_be_long_and_the_last_may_lack_its_end(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell("head -c 100000 /dev/zero | tr '\\0' x; printf end"))
        .await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 1 << 20).await.expect("logs");
    assert_eq!(log.len(), 100_003);
    assert!(log.starts_with(b"xxx") && log.ends_with(b"xend"));
    engine.close().await;
}

async fn the_log_can_be_read_while_the_container_runs(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell("echo first; echo second >&2; sleep 1000"))
        .await;
    engine.until_logged(&id, "first").await;
    engine.until_logged(&id, "second").await;
    engine.close().await;
}
