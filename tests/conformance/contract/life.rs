//! A container's life.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::runtime::{ContainerId, ContainerState, LABEL_KERNEL_ID, RuntimeError};

use crate::engine::{IMAGE, TestEngine, exec_spec};

/// Signal numbers.
const KILL: i32 = 9;

contract! {
    with fake {
        a_container_is_created_then_runs_then_has_stopped
        the_exit_code_is_told_as_often_as_asked
        wait_returns_when_the_container_ends
        many_may_wait_for_one_container
        a_wait_that_was_given_up_may_be_asked_again
        a_container_may_be_removed_twice_and_one_that_never_was
        a_second_create_with_the_same_id_is_refused_and_harms_nothing
        unknown_containers_are_not_found
        a_missing_image_is_named_and_nothing_is_made
        a_container_starts_once
        a_container_that_has_stopped_does_not_start
        wait_may_be_asked_before_start
        creating_takes_no_name_that_is_in_use_and_gives_it_back
        a_killed_container_tells_the_signal
        killing_a_dead_container_is_not_an_error
        a_container_that_was_never_started_can_be_removed
        a_running_container_can_be_removed
        removing_ends_every_wait
        only_containers_with_our_label_are_listed_dead_or_alive
        what_a_container_was_made_with_is_told
        another_agent_finds_the_containers
        another_agent_may_start_what_was_created
        exec_needs_a_running_container
        an_id_may_be_used_again_after_remove
        containers_live_side_by_side
        the_engine_has_a_name_and_a_version
        the_log_of_a_silent_container_is_empty
    }
}

async fn a_container_is_created_then_runs_then_has_stopped(engine: TestEngine) {
    let id = engine
        .runtime
        .create(&engine.shell("sleep 1000"))
        .await
        .expect("create");
    let created = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (created.state, created.exit),
        (ContainerState::Created, None)
    );
    engine.runtime.start(&id).await.expect("start");
    let running = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (running.state, running.pid.is_some(), running.exit),
        (ContainerState::Running, true, None)
    );
    engine.runtime.kill(&id, KILL).await.expect("kill");
    let exit = engine.runtime.wait(&id).await.expect("wait");
    let stopped = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (stopped.state, stopped.pid, stopped.exit),
        (ContainerState::Stopped, None, Some(exit))
    );
    engine.close().await;
}

async fn the_exit_code_is_told_as_often_as_asked(engine: TestEngine) {
    for code in [0, 7, 255] {
        let id = engine.launch_to_end(code).await;
        for _ in 0..3 {
            let exit = engine.runtime.wait(&id).await.expect("wait");
            assert_eq!((exit.code, exit.oom_killed), (code, false));
        }
    }
    engine.close().await;
}

async fn wait_returns_when_the_container_ends(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let mut wait = engine.runtime.wait(&id);
    assert!(futures_util::poll!(wait.as_mut()).is_pending());
    engine.runtime.kill(&id, KILL).await.expect("kill");
    assert_eq!(wait.await.expect("wait").code, 128 + KILL);
    engine.close().await;
}

async fn many_may_wait_for_one_container(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let waits = (0..8).map(|_| engine.runtime.wait(&id));
    let kill = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        engine.runtime.kill(&id, KILL).await
    };
    let (ends, killed) = tokio::join!(futures_util::future::join_all(waits), kill);
    killed.expect("kill");
    for end in ends {
        assert_eq!(end.expect("wait").code, 128 + KILL);
    }
    engine.close().await;
}

async fn a_wait_that_was_given_up_may_be_asked_again(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let short = Duration::from_millis(20);
    tokio::time::timeout(short, engine.runtime.wait(&id))
        .await
        .expect_err("it runs");
    engine.runtime.kill(&id, KILL).await.expect("kill");
    assert_eq!(
        engine.runtime.wait(&id).await.expect("wait").code,
        128 + KILL
    );
    engine.close().await;
}

async fn a_container_may_be_removed_twice_and_one_that_never_was(engine: TestEngine) {
    let id = engine.launch_to_end(0).await;
    for _ in 0..2 {
        engine.runtime.remove(&id).await.expect("remove");
    }
    engine
        .runtime
        .remove(&ContainerId("0".repeat(64)))
        .await
        .expect("remove the unknown");
    assert!(matches!(
        engine.runtime.inspect(&id).await,
        Err(RuntimeError::NotFound(_))
    ));
    engine.close().await;
}

async fn a_second_create_with_the_same_id_is_refused_and_harms_nothing(engine: TestEngine) {
    let spec = engine.shell("sleep 1000");
    let id = engine.launch(&spec).await;
    let error = engine.runtime.create(&spec).await.expect_err("it lives");
    // The name holds the id that was asked for.
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&spec.id.0)),
        "{error}"
    );
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(info.state, ContainerState::Running);
    engine.close().await;
}

async fn unknown_containers_are_not_found(engine: TestEngine) {
    let runtime = &engine.runtime;
    for id in ["0".repeat(64), "../etc".to_owned()].map(ContainerId) {
        let exec = exec_spec(&["true"]);
        let answers = [
            runtime.start(&id).await,
            runtime.wait(&id).await.map(drop),
            runtime.kill(&id, KILL).await,
            runtime.inspect(&id).await.map(drop),
            runtime.logs(&id, 10).await.map(drop),
            runtime.exec(&id, &exec).await.map(drop),
        ];
        for answer in answers {
            assert!(
                matches!(&answer, Err(RuntimeError::NotFound(unknown)) if *unknown == id),
                "{answer:?}"
            );
        }
    }
    engine.close().await;
}

async fn a_missing_image_is_named_and_nothing_is_made(engine: TestEngine) {
    let mut spec = engine.shell("true");
    spec.image = "local/other:latest".to_owned();
    let error = engine
        .runtime
        .create(&spec)
        .await
        .expect_err("no such image");
    assert!(
        matches!(&error, RuntimeError::ImageMissing(name) if *name == spec.image),
        "{error}"
    );
    assert!(engine.runtime.list().await.expect("list").is_empty());
    engine.assert_nothing_left();
    engine.close().await;
}

async fn a_container_starts_once(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let error = engine.runtime.start(&id).await.expect_err("started");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
    engine.close().await;
}

async fn a_container_that_has_stopped_does_not_start(engine: TestEngine) {
    let id = engine.launch_to_end(0).await;
    engine.runtime.wait(&id).await.expect("wait");
    let error = engine.runtime.start(&id).await.expect_err("dead");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
    engine.close().await;
}

async fn wait_may_be_asked_before_start(engine: TestEngine) {
    let spec = engine.shell("sleep 1000");
    let id = engine.runtime.create(&spec).await.expect("create");
    let mut wait = engine.runtime.wait(&id);
    let short = Duration::from_millis(100);
    let early = tokio::time::timeout(short, wait.as_mut()).await;
    assert!(early.is_err(), "it has not even begun: {early:?}");
    engine.runtime.start(&id).await.expect("start");
    engine.runtime.kill(&id, KILL).await.expect("kill");
    assert_eq!(wait.await.expect("wait").code, 128 + KILL);
    engine.close().await;
}

async fn creating_takes_no_name_that_is_in_use_and_gives_it_back(engine: TestEngine) {
    let (one, mut two) = (engine.shell("sleep 1000"), engine.shell("sleep 1000"));
    two.name.clone_from(&one.name);
    let (first, second) = tokio::join!(engine.runtime.create(&one), engine.runtime.create(&two));
    let (made, error, refused) = match (first, second) {
        (Ok(made), Err(error)) => (made, error, two),
        (Err(error), Ok(made)) => (made, error, one),
        both => panic!("one of two has the name: {both:?}"),
    };
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&refused.name)),
        "{error:?}"
    );
    engine.runtime.remove(&made).await.expect("remove");
    engine.runtime.create(&refused).await.expect("it is free");
    engine.close().await;
}

async fn a_killed_container_tells_the_signal(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    engine.runtime.kill(&id, KILL).await.expect("kill");
    let exit = engine.runtime.wait(&id).await.expect("wait");
    assert_eq!((exit.code, exit.oom_killed), (137, false));
    engine.close().await;
}

async fn killing_a_dead_container_is_not_an_error(engine: TestEngine) {
    let id = engine.launch_to_end(3).await;
    engine.runtime.wait(&id).await.expect("wait");
    engine.runtime.kill(&id, KILL).await.expect("kill");
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 3);
    engine.close().await;
}

async fn a_container_that_was_never_started_can_be_removed(engine: TestEngine) {
    let id = engine
        .runtime
        .create(&engine.shell("true"))
        .await
        .expect("create");
    engine.runtime.remove(&id).await.expect("remove");
    engine.assert_nothing_left();
    engine.close().await;
}

async fn a_running_container_can_be_removed(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell("sleep 1000 & sleep 1000"))
        .await;
    engine.runtime.remove(&id).await.expect("remove");
    engine.assert_nothing_left();
    engine.close().await;
}

async fn removing_ends_every_wait(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let remove = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        engine.runtime.remove(&id).await
    };
    let (end, removed) = tokio::join!(engine.runtime.wait(&id), remove);
    removed.expect("remove");
    match end {
        Ok(exit) => assert_eq!(exit.code, 137),
        Err(error) => assert!(matches!(error, RuntimeError::NotFound(_)), "{error}"),
    }
    engine.close().await;
}

async fn only_containers_with_our_label_are_listed_dead_or_alive(engine: TestEngine) {
    let alive = engine.launch(&engine.shell("sleep 1000")).await;
    let dead = engine.launch_to_end(0).await;
    engine.runtime.wait(&dead).await.expect("wait");
    let mut foreign = engine.shell("sleep 1000");
    foreign.labels.clear();
    let foreign = engine.runtime.create(&foreign).await.expect("create");
    let listed = engine.runtime.list().await.expect("list");
    let listed: HashSet<_> = listed
        .into_iter()
        .map(|info| (info.id, info.state))
        .map(|it| (it.0, format!("{:?}", it.1)))
        .collect();
    let expected = [(alive, "Running".to_owned()), (dead, "Stopped".to_owned())];
    assert_eq!(listed, expected.into());
    engine
        .runtime
        .inspect(&foreign)
        .await
        .expect("it is there all the same");
    engine.close().await;
}

async fn what_a_container_was_made_with_is_told(engine: TestEngine) {
    let mut spec = engine.shell("sleep 1000");
    spec.labels
        .insert(LABEL_KERNEL_ID.to_owned(), "k1".to_owned());
    let id = engine.runtime.create(&spec).await.expect("create");
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (info.id, info.name, info.labels),
        (id, spec.name, spec.labels)
    );
    assert_eq!((info.image.as_str(), info.ports), (IMAGE, spec.ports));
    engine.close().await;
}

async fn another_agent_finds_the_containers(mut engine: TestEngine) {
    let alive = engine.launch(&engine.shell("sleep 1000")).await;
    let dead = engine.launch_to_end(5).await;
    engine.runtime.wait(&dead).await.expect("wait");
    let before = engine.runtime.list().await.expect("list");
    engine.reopen().await;
    assert_eq!(engine.runtime.list().await.expect("list"), before);
    assert_eq!(engine.runtime.wait(&dead).await.expect("wait").code, 5);
    engine.runtime.kill(&alive, KILL).await.expect("kill");
    assert_eq!(engine.runtime.wait(&alive).await.expect("wait").code, 137);
    engine.close().await;
}

async fn another_agent_may_start_what_was_created(mut engine: TestEngine) {
    let id = engine
        .runtime
        .create(&engine.shell("sleep 1000"))
        .await
        .expect("create");
    engine.reopen().await;
    engine.runtime.start(&id).await.expect("start");
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (info.state, info.pid.is_some()),
        (ContainerState::Running, true)
    );
    engine.close().await;
}

async fn exec_needs_a_running_container(engine: TestEngine) {
    let id = engine
        .runtime
        .create(&engine.shell("sleep 1000"))
        .await
        .expect("create");
    let error = engine
        .runtime
        .exec(&id, &exec_spec(&["echo", "a"]))
        .await
        .expect_err("not yet");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
    engine.runtime.start(&id).await.expect("start");
    let output = engine
        .runtime
        .exec(&id, &exec_spec(&["echo", "a"]))
        .await
        .expect("exec");
    assert_eq!(output.code, 0);
    engine.runtime.kill(&id, KILL).await.expect("kill");
    engine.runtime.wait(&id).await.expect("wait");
    let error = engine
        .runtime
        .exec(&id, &exec_spec(&["echo", "a"]))
        .await
        .expect_err("no more");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
    engine.close().await;
}

async fn an_id_may_be_used_again_after_remove(engine: TestEngine) {
    let spec = engine.shell("sleep 1000");
    for _ in 0..2 {
        let id = engine.launch(&spec).await;
        engine.runtime.remove(&id).await.expect("remove");
    }
    engine.close().await;
}

async fn containers_live_side_by_side(engine: TestEngine) {
    let runs = (1..=6).map(|code| {
        let engine = &engine;
        async move {
            let id = engine.launch_to_end(code).await;
            let exit = engine.runtime.wait(&id).await.expect("wait");
            engine.runtime.remove(&id).await.expect("remove");
            (exit.code, code)
        }
    });
    for (got, wanted) in futures_util::future::join_all(runs).await {
        assert_eq!(got, wanted);
    }
    engine.close().await;
}

async fn the_engine_has_a_name_and_a_version(engine: TestEngine) {
    let info = Arc::clone(&engine.runtime).info().await.expect("info");
    assert!(
        ["fake", "youki", "containerd", "docker"].contains(&info.name) && !info.version.is_empty(),
        "{info:?}"
    );
    engine.close().await;
}

async fn the_log_of_a_silent_container_is_empty(engine: TestEngine) {
    let id = engine.launch_to_end(0).await;
    engine.runtime.wait(&id).await.expect("wait");
    assert!(
        engine
            .runtime
            .logs(&id, 100)
            .await
            .expect("logs")
            .is_empty()
    );
    engine.close().await;
}
