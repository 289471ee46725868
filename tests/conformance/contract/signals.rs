//! Signals and ends.

use crate::engine::{TestEngine, processes};

contract! {
    with fake {
        a_signal_reaches_the_first_process
        a_signal_that_the_first_process_minds_not_ends_nothing
        a_number_that_is_no_signal_is_refused
        processes_in_the_background_die_with_the_first
        a_container_ends_by_a_signal_that_it_sends_itself
    }
}

async fn a_signal_reaches_the_first_process(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell("trap 'exit 42' TERM; echo ready; while true; do sleep 0.05; done"))
        .await;
    engine.until_logged(&id, "ready").await;
    engine.runtime.kill(&id, 15).await.expect("kill");
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 42);
    engine.close().await;
}

async fn a_signal_that_the_first_process_minds_not_ends_nothing(engine: TestEngine) {
    let id = engine
        .launch(
            &engine.shell("trap 'echo minded' INT; echo ready; while true; do sleep 0.05; done"),
        )
        .await;
    engine.until_logged(&id, "ready").await;
    engine.runtime.kill(&id, 2).await.expect("kill");
    engine.until_logged(&id, "minded").await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert!(info.pid.is_some() && info.exit.is_none(), "{info:?}");
    engine.close().await;
}

async fn a_number_that_is_no_signal_is_refused(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    for signal in [-1, 0, 4711] {
        let error = engine.runtime.kill(&id, signal).await;
        let error = error.expect_err("no signal");
        assert!(error.to_string().contains(&signal.to_string()), "{error}");
    }
    engine.close().await;
}

async fn processes_in_the_background_die_with_the_first(engine: TestEngine) {
    let mark = format!("1000.{}", std::process::id());
    let (status, _) = engine
        .run(&engine.shell(&format!("sleep {mark} & sleep {mark} & exit 4")))
        .await;
    assert_eq!(status.code, 4);
    assert_eq!(processes(&format!("sleep {mark}")), []);
    engine.close().await;
}

async fn a_container_ends_by_a_signal_that_it_sends_itself(engine: TestEngine) {
    let (status, _) = engine
        .run(&engine.shell("sh -c 'kill -9 $$'; exit $?"))
        .await;
    assert_eq!((status.code, status.oom_killed), (137, false));
    engine.close().await;
}
