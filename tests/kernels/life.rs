//! Creation, restart, and the agent's own end and return.

use backendai_agent::agent::request::{ExecuteMode, KernelConfig, Reply, Request, VfolderMount};
use backendai_agent::manager::Node;
use backendai_agent::runtime::{ContainerState, LABEL_KERNEL_ID};

use crate::node::{TestNode, batch, slots};

on_every_engine! {
    a_kernel_is_created_told_and_destroyed
    two_kernels_live_side_by_side
    a_kernel_beyond_what_the_node_has_is_refused
    an_image_that_is_not_there_leaves_nothing
    a_virtual_folder_that_is_not_there_leaves_nothing
    a_creation_that_fails_in_the_engine_leaves_nothing
    a_restart_gives_another_container_and_keeps_the_files
    another_agent_takes_a_kernel_back_with_its_run
    an_agent_that_ends_for_good_destroys_its_kernels
    kernels_can_be_created_at_once
}

async fn a_kernel_is_created_told_and_destroyed(mut node: TestNode) {
    let created = node.create("k1").await;
    assert_eq!(node.events(), ["preparing k1", "creating k1", "started k1"]);
    assert!(created.repl_in_port != created.repl_out_port && created.repl_in_port > 0);
    let containers = node.containers().await;
    assert_eq!(containers.len(), 1);
    let info = &containers[0];
    assert_eq!(
        (info.id.0.as_str(), info.state),
        (created.container.as_str(), ContainerState::Running)
    );
    assert_eq!(info.labels[LABEL_KERNEL_ID], node.id("k1").as_str());
    assert_eq!(node.output("k1", "echo hello").await, "hello\n");
    let reply = node.destroy("k1").await;
    assert!(matches!(reply, Reply::Destroyed(_)), "{reply:?}");
    assert_eq!(node.events(), ["terminated k1 user-requested"]);
    node.assert_nothing_held().await;
    node.close().await;
}

async fn two_kernels_live_side_by_side(node: TestNode) {
    node.create("k1").await;
    node.create("k2").await;
    let (one, two) = tokio::join!(
        node.output("k1", "echo one > f; sleep 0.3; cat f; hostname"),
        node.output("k2", "echo two > f; sleep 0.3; cat f; hostname"),
    );
    assert!(
        one.starts_with("one\n") && two.starts_with("two\n"),
        "{one} {two}"
    );
    assert_ne!(one.lines().nth(1), two.lines().nth(1));
    node.destroy("k1").await;
    assert_eq!(node.output("k2", "cat f").await, "two\n");
    node.close().await;
}

async fn a_kernel_beyond_what_the_node_has_is_refused(node: TestNode) {
    let config = KernelConfig {
        slots: slots("3", 1 << 20),
        ..node.config()
    };
    node.try_create("k1", config)
        .await
        .expect_err("three cores");
    node.assert_nothing_held().await;
    node.close().await;
}

async fn an_image_that_is_not_there_leaves_nothing(node: TestNode) {
    let config = KernelConfig {
        image: "localhost:1/no/such:image".to_owned(),
        registry: "localhost:1".to_owned(),
        digest: String::new(),
        ..node.config()
    };
    node.try_create("k1", config).await.expect_err("no image");
    node.assert_nothing_held().await;
    node.close().await;
}

async fn a_virtual_folder_that_is_not_there_leaves_nothing(node: TestNode) {
    let config = KernelConfig {
        mounts: vec![VfolderMount {
            name: "data".to_owned(),
            host: "local".to_owned(),
            id: "0".repeat(32),
            read_only: true,
        }],
        ..node.config()
    };
    node.try_create("k1", config).await.expect_err("no folder");
    node.assert_nothing_held().await;
    node.close().await;
}

async fn a_creation_that_fails_in_the_engine_leaves_nothing(node: TestNode) {
    // Linux takes no limit of less than some pages: the engine refuses or the container cannot begin.
    let config = KernelConfig {
        slots: slots("1", 4096),
        ..node.config()
    };
    node.try_create("k1", config).await.expect_err("too little");
    node.assert_nothing_held().await;
    node.create("k1").await;
    node.close().await;
}

async fn a_restart_gives_another_container_and_keeps_the_files(node: TestNode) {
    let first = node.create("k1").await;
    node.output("k1", "echo kept > file; touch /tmp/gone").await;
    let second = node.restart("k1").await.expect("restarted");
    assert_ne!(first.container, second.container);
    assert_eq!(
        node.output("k1", "cat file; ls /tmp/gone 2>/dev/null || true")
            .await,
        "kept\n"
    );
    assert_eq!(node.containers().await.len(), 1);
    node.close().await;
}

async fn another_agent_takes_a_kernel_back_with_its_run(mut node: TestNode) {
    let created = node.create("k1").await;
    let script = "echo before; while ! [ -e go ]; do sleep 0.05; done; echo after; exit 3";
    node.until_printed("k1", "r1", batch(script), "before")
        .await;
    node.restart_agent().await;
    let containers = node.containers().await;
    assert_eq!(
        (containers.len(), containers[0].id.0.as_str()),
        (1, created.container.as_str())
    );
    std::fs::write(node.scratch("k1").join("work/go"), "").expect("write");
    let finished = node.finish("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!((finished.code, finished.out.as_str()), (Some(3), "after\n"));
    assert_eq!(node.output("k1", "echo again").await, "again\n");
    node.close().await;
}

async fn an_agent_that_ends_for_good_destroys_its_kernels(mut node: TestNode) {
    node.create("k1").await;
    node.create("k2").await;
    node.events();
    node.agent.shutdown(true).await;
    let mut ends = node.events();
    ends.sort();
    assert_eq!(
        ends,
        [
            "terminated k1 agent-termination",
            "terminated k2 agent-termination"
        ]
    );
    node.assert_nothing_held().await;
}

async fn kernels_can_be_created_at_once(node: TestNode) {
    let config = || KernelConfig {
        slots: slots("0", 16 << 20),
        ..node.config()
    };
    let names: Vec<_> = (0..4).map(|i| format!("k{i}")).collect();
    let creates = names.iter().map(|name| node.try_create(name, config()));
    for created in futures_util::future::join_all(creates).await {
        created.expect("created");
    }
    let outputs = names.iter().map(|name| node.output(name, "echo ready"));
    for output in futures_util::future::join_all(outputs).await {
        assert_eq!(output, "ready\n");
    }
    let reason = "user-requested".to_owned();
    node.handle(Request::DestroyAll { reason })
        .await
        .expect("destroyed");
    node.assert_nothing_held().await;
    node.close().await;
}
