//! An engine's daemon goes and comes back; kernels stay where the engine lets them.

use backendai_agent::agent::request::ExecuteMode;
use backendai_agent::backends::RuntimeKind;
use backendai_agent::manager::Node;
use backendai_agent::runtime::ContainerId;

use crate::daemons::{Daemon, Kind, OwnDaemon};
use crate::node::{TestNode, batch};

/// A node whose daemon is this test's alone.
pub async fn on_own(kind: Kind, options: &[&str]) -> Option<TestNode> {
    let runtime = match kind {
        Kind::Docker => RuntimeKind::Docker,
        Kind::Containerd => RuntimeKind::Containerd,
    };
    TestNode::on(runtime, OwnDaemon::start(kind, options).map(Daemon::Own)).await
}

async fn a_kernel_lives_on(mut node: TestNode, killed: bool, forwards: bool) {
    node.create("k1").await;
    node.until_printed(
        "k1",
        "r1",
        batch("echo up; while ! [ -e go ]; do sleep 0.05; done; echo down"),
        "up",
    )
    .await;
    if killed {
        node.own_daemon().kill();
    } else {
        node.own_daemon().stop();
    }
    std::fs::write(node.scratch("k1").join("work/go"), "").expect("write");
    // The runner is asked without the engine, but for Docker: ports of 127.0.0.1 are forwarded by programs of dockerd's.
    if !forwards {
        node.own_daemon().start_again();
    }
    let finished = node.finish("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!((finished.code, finished.out.as_str()), (Some(0), "down\n"));
    if forwards {
        node.own_daemon().start_again();
    }
    assert_eq!(node.output("k1", "echo after").await, "after\n");
    let second = node.create("k2").await;
    assert_eq!(node.containers().await.len(), 2);
    node.restart_agent().await;
    assert_eq!(node.output("k1", "echo recovered").await, "recovered\n");
    node.events();
    let id = ContainerId(second.container);
    let _ = node.agent.parts().runtime.kill(&id, 9).await;
    assert_eq!(node.next_event().await, "terminated k2 self-terminated");
    node.close().await;
}

mod containerd {
    use super::{Kind, a_kernel_lives_on, on_own};

    #[tokio::test]
    async fn a_kernel_lives_on_while_its_engine_is_started_again() {
        if let Some(node) = on_own(Kind::Containerd, &[]).await {
            a_kernel_lives_on(node, false, true).await;
        }
    }

    #[tokio::test]
    async fn a_kernel_lives_on_when_its_engine_is_killed() {
        if let Some(node) = on_own(Kind::Containerd, &[]).await {
            a_kernel_lives_on(node, true, true).await;
        }
    }
}

mod docker {
    use super::{Kind, Node as _, a_kernel_lives_on, on_own};

    #[tokio::test]
    async fn a_kernel_lives_on_while_its_engine_is_started_again_with_live_restore() {
        if let Some(node) = on_own(Kind::Docker, &["--live-restore"]).await {
            a_kernel_lives_on(node, false, false).await;
        }
    }

    #[tokio::test]
    async fn a_kernel_lives_on_when_its_engine_is_killed_with_live_restore() {
        if let Some(node) = on_own(Kind::Docker, &["--live-restore"]).await {
            a_kernel_lives_on(node, true, false).await;
        }
    }

    #[tokio::test]
    async fn a_kernel_that_ends_with_its_engine_is_reported_when_that_is_back() {
        let Some(mut node) = on_own(Kind::Docker, &[]).await else {
            return;
        };
        node.create("k1").await;
        node.events();
        node.own_daemon().restart();
        assert_eq!(node.next_event().await, "terminated k1 self-terminated");
        node.assert_nothing_held().await;
        node.agent.shutdown(true).await;
    }
}
