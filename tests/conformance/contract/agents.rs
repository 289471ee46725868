//! Agents come and go, and are not alone: what one made the next finds, and nobody disturbs a creation that goes on.

use std::fs;
use std::time::Duration;

use backendai_agent::runtime::{ContainerId, ContainerState, Mount, MountKind};
use futures_util::future::join_all;

use crate::engine::TestEngine;

contract! {
    with fake {
        what_ends_while_no_agent_is_there_is_known_to_the_next
        the_log_goes_on_while_no_agent_is_there
        a_create_that_goes_on_is_not_taken_for_a_torn_one
        opening_an_engine_disturbs_no_create_that_goes_on
        two_agents_see_the_same
        a_removal_may_meet_another
        a_wait_ends_though_another_agent_removes_the_container
    }
}

async fn what_ends_while_no_agent_is_there_is_known_to_the_next(mut engine: TestEngine) {
    let id = gated(&engine, "echo bye; exit 11").await;
    engine.reopen().await;
    fs::write(engine.path("go/now"), "").expect("write");
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 11);
    assert_eq!(engine.runtime.logs(&id, 100).await.expect("logs"), b"bye\n");
    engine.close().await;
}

async fn the_log_goes_on_while_no_agent_is_there(mut engine: TestEngine) {
    let id = gated(&engine, "echo after; sleep 1000").await;
    engine.leave();
    fs::write(engine.path("go/now"), "").expect("write");
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.reopen().await;
    engine.until_logged(&id, "after").await;
    engine.close().await;
}

/// A container that waits for the file `go/now` and then runs a script.
async fn gated(engine: &TestEngine, script: &str) -> ContainerId {
    let script = format!("while ! [ -e /go/now ]; do sleep 0.02; done; {script}");
    let mut spec = engine.shell(&script);
    fs::create_dir(engine.path("go")).expect("folder");
    spec.mounts = vec![Mount {
        kind: MountKind::Bind(engine.path("go")),
        target: "/go".into(),
        read_only: true,
    }];
    engine.launch(&spec).await
}

async fn a_create_that_goes_on_is_not_taken_for_a_torn_one(engine: TestEngine) {
    let specs: Vec<_> = (0..4).map(|_| engine.shell("sleep 1000")).collect();
    let creates = join_all(specs.iter().map(|spec| engine.runtime.create(spec)));
    let lists = async {
        for _ in 0..50 {
            engine.runtime.list().await.expect("list");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (created, ()) = tokio::join!(creates, lists);
    for id in created {
        let id = id.expect("create");
        engine.runtime.start(&id).await.expect("start");
    }
    engine.close().await;
}

async fn opening_an_engine_disturbs_no_create_that_goes_on(engine: TestEngine) {
    let specs: Vec<_> = (0..4).map(|_| engine.shell("sleep 1000")).collect();
    let creates = join_all(specs.iter().map(|spec| engine.runtime.create(spec)));
    let opens = async {
        for _ in 0..20 {
            engine.another().await;
        }
    };
    let (created, ()) = tokio::join!(creates, opens);
    for id in created {
        let id = id.expect("create");
        engine.runtime.start(&id).await.expect("start");
    }
    engine.close().await;
}

async fn two_agents_see_the_same(engine: TestEngine) {
    let other = engine.another().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(other.inspect(&id).await.expect("inspect"), info);
    other.kill(&id, 9).await.expect("kill");
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 137);
    let info = other.inspect(&id).await.expect("inspect");
    assert_eq!(info.state, ContainerState::Stopped);
    engine.close().await;
}

async fn a_removal_may_meet_another(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let removals = join_all((0..3).map(|_| engine.runtime.remove(&id))).await;
    for removed in removals {
        removed.expect("remove");
    }
    engine.assert_nothing_left();
    engine.close().await;
}

async fn a_wait_ends_though_another_agent_removes_the_container(engine: TestEngine) {
    let other = engine.another().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let remove = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.remove(&id).await
    };
    let (end, removed) = tokio::join!(engine.runtime.wait(&id), remove);
    removed.expect("remove");
    assert!(end.is_err() || end.is_ok_and(|exit| exit.code == 137));
    engine.close().await;
}
