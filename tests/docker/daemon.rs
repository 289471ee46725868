//! The daemon dies, freezes, restarts: calls fail by their limits and say so, waits go on, everything is found again.

use std::time::Duration;

use backendai_agent::runtime::{ContainerState, RuntimeError};

use crate::away::{KILL, Wait, assert_nothing_answers, assert_unavailable, in_time};
use crate::daemons::docker_stores_in_containerd;
use crate::node::{Node, exec_spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_daemon_is_told_and_the_wait_finds_the_end_when_it_is_back() {
    let Some(mut node) = Node::new(&[]).await else {
        return;
    };
    let id = node.launch(&node.shell("echo here; sleep 1000")).await;
    let wait = Wait::begin(&node, &id);
    node.daemon.kill();
    assert_nothing_answers(&node, &id).await;
    // Without live-restore dockerd ends what it finds running.
    node.daemon.start_again();
    let end = wait.end().await;
    let info = node.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (info.state, info.exit),
        (ContainerState::Stopped, Some(end))
    );
    assert_eq!(node.runtime.list().await.expect("list"), [info]);
    assert_eq!(node.runtime.logs(&id, 100).await.expect("logs"), b"here\n");
    node.runtime.remove(&id).await.expect("remove");
    assert_eq!(node.runtime.list().await.expect("list"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_live_restore_containers_outlive_the_daemon_and_waits_go_on() {
    let Some(mut node) = Node::new(&["--live-restore"]).await else {
        return;
    };
    let id = node.launch(&node.shell("sleep 1000")).await;
    let wait = Wait::begin(&node, &id);
    let before = node.runtime.list().await.expect("list");
    node.daemon.restart();
    assert_eq!(node.runtime.list().await.expect("list"), before);
    let output = node.runtime.exec(&id, &exec_spec(&["echo", "alive"])).await;
    assert_eq!(output.expect("exec").stdout, b"alive\n");
    node.runtime.kill(&id, KILL).await.expect("kill");
    assert_eq!(wait.end().await.code, 137);
    node.runtime.remove(&id).await.expect("remove");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_daemon_is_told_and_what_it_makes_late_can_be_removed() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let id = node.launch(&node.shell("sleep 1000")).await;
    let late = node.shell("sleep 1000");
    node.daemon.freeze();
    let ((), made) = tokio::join!(
        assert_nothing_answers(&node, &id),
        in_time(node.runtime.create(&late)),
    );
    assert_unavailable(made);
    node.daemon.thaw();
    // What was asked of the frozen daemon it does now, though nobody waits for it any more.
    match in_time(node.runtime.wait(&id)).await {
        Ok(end) => assert_eq!(end.code, 128 + KILL),
        Err(error) => assert!(matches!(error, RuntimeError::NotFound(_)), "{error}"),
    }
    let found = async {
        loop {
            let listed = node.runtime.list().await.expect("list");
            if listed.iter().any(|info| info.name == late.name) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // With containerd's store it gives up what nobody waits for.
    if !docker_stores_in_containerd() {
        in_time(found).await;
    }
    // By the id that was asked for: dockerd's own was never told.
    node.runtime.remove(&late.id).await.expect("remove");
    let listed = node.runtime.list().await.expect("list");
    assert!(
        listed.iter().all(|info| info.name != late.name),
        "{listed:?}"
    );
}
