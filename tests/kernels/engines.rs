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
    use std::time::Duration;

    use backendai_agent::backends::RuntimeKind;

    use super::{Daemon, Kind, Node as _, TestNode, a_kernel_lives_on, on_own};
    use crate::daemons::calls::CallsSocket;

    #[tokio::test]
    async fn a_kernel_costs_few_calls_of_dockerd() {
        let daemon = Daemon::get(Kind::Docker);
        let socket = daemon
            .as_ref()
            .ok()
            .map(|it| CallsSocket::before(&it.socket()));
        // The socket's, in place of a daemon that ends after the test.
        let shown = match (&daemon, &socket) {
            (Ok(_), Some(socket)) => Ok(Daemon::Shared(Kind::Docker, socket.path().to_owned())),
            _ => Err("needs dockerd (not installed)".to_owned()),
        };
        let Some(node) = TestNode::on(RuntimeKind::Docker, shown).await else {
            return;
        };
        let socket = socket.expect("there is a daemon");
        let list = "GET /containers/json";
        // The comparison that the agent makes from time to time may come between.
        for name in ["k1", "k2", "k3", "k4"] {
            socket.take();
            let created = node.create(name).await;
            let of = |call: &str| call.replace("ID", &created.container);
            let (look, wait) = (
                of("GET /containers/ID/json"),
                of("POST /containers/ID/wait"),
            );
            while !socket.calls().contains(&wait) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let create = socket.take();
            node.destroy(name).await;
            let destroy = socket.take();
            if [&create, &destroy]
                .into_iter()
                .flatten()
                .any(|it| it == list)
            {
                continue;
            }
            let image = format!("GET /images/{}/json", node.config().digest);
            let (make, start) = (
                "POST /containers/create".to_owned(),
                of("POST /containers/ID/start"),
            );
            assert_eq!(
                create,
                [image, make, start, look.clone(), look.clone(), wait]
            );
            let (kill, remove) = (of("POST /containers/ID/kill"), of("DELETE /containers/ID"));
            assert_eq!(destroy, [kill, look, remove]);
            return node.close().await;
        }
        panic!("the agent compares all the time");
    }

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
