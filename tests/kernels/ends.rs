//! Kernels that end by themselves, are not used, or whose agent or engine is away.

use std::time::Duration;

use backendai_agent::agent::request::{KernelConfig, Reply};
use backendai_agent::manager::Node;

use crate::node::{TestNode, batch};

on_every_engine! {
    a_kernel_that_dies_by_itself_is_reported_once
    what_dies_while_no_agent_is_there_is_reported_by_the_next
    a_kernel_that_nobody_uses_ends
    destroying_a_kernel_ends_the_calls_that_wait_for_it
    a_kernel_may_be_destroyed_twice_at_once
    an_unknown_kernel_counts_as_destroyed
}

async fn a_kernel_that_dies_by_itself_is_reported_once(mut node: TestNode) {
    let created = node.create("k1").await;
    node.events();
    let _ = node
        .agent
        .parts()
        .runtime
        .kill(&backendai_agent::runtime::ContainerId(created.container), 9)
        .await;
    assert_eq!(node.next_event().await, "terminated k1 self-terminated");
    node.assert_nothing_held().await;
    node.destroy("k1").await;
    node.close().await;
}

async fn what_dies_while_no_agent_is_there_is_reported_by_the_next(mut node: TestNode) {
    let created = node.create("k1").await;
    node.create("k2").await;
    node.agent.shutdown(false).await;
    node.kill_container(&created).await;
    node.start_agent().await;
    assert_eq!(node.next_event().await, "terminated k1 self-terminated");
    assert_eq!(node.output("k2", "echo lives").await, "lives\n");
    node.close().await;
}

async fn a_kernel_that_nobody_uses_ends(mut node: TestNode) {
    let config = KernelConfig {
        idle_timeout: 1,
        ..node.config()
    };
    node.try_create("k1", config).await.expect("created");
    node.events();
    assert_eq!(node.next_event().await, "terminated k1 idle-timeout");
    node.assert_nothing_held().await;
    node.close().await;
}

async fn destroying_a_kernel_ends_the_calls_that_wait_for_it(node: TestNode) {
    node.create("k1").await;
    node.until_printed("k1", "r1", batch("echo up; sleep 1000"), "up")
        .await;
    let waits = node.try_execute(
        "k1",
        "r1",
        backendai_agent::agent::request::ExecuteMode::Continue,
    );
    let (waited, _) = tokio::join!(waits, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.destroy("k1").await
    });
    assert!(matches!(waited, Ok(Reply::Cancelled)), "{waited:?}");
    node.assert_nothing_held().await;
    node.close().await;
}

async fn a_kernel_may_be_destroyed_twice_at_once(mut node: TestNode) {
    node.create("k1").await;
    node.events();
    tokio::join!(node.destroy("k1"), node.destroy("k1"));
    assert_eq!(node.events(), ["terminated k1 user-requested"]);
    node.assert_nothing_held().await;
    node.close().await;
}

async fn an_unknown_kernel_counts_as_destroyed(mut node: TestNode) {
    let reply = node.destroy("k9").await;
    assert!(matches!(reply, Reply::Destroyed(None)), "{reply:?}");
    assert_eq!(node.events(), ["terminated k9 self-terminated"]);
    node.close().await;
}
