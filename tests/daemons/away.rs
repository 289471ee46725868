//! A daemon that is away: what every call says then, and waits that go on.

use std::time::Duration;

use backendai_agent::runtime::{ContainerId, ExitStatus, Result, RuntimeError};
use tokio::task::JoinSet;

use crate::node::{Node, exec_spec};

/// SIGKILL.
pub const KILL: i32 = 9;
/// Far beyond every limit: a call that takes longer hangs.
const HANGS: Duration = Duration::from_secs(60);

/// The error is that the engine does not answer.
pub fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T>) {
    assert!(
        matches!(answer, Err(RuntimeError::Unavailable { .. })),
        "{answer:?}"
    );
}

/// What a call gives that does not hang.
pub async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, call).await.expect("it hangs")
}

/// Every verb but `wait` fails, and says that the engine does not answer.
pub async fn assert_nothing_answers(node: &Node, id: &ContainerId) {
    let (runtime, spec) = (&node.runtime, node.shell("true"));
    let program = exec_spec(&["true"]);
    let all = async {
        tokio::join!(
            runtime.info(),
            runtime.create(&spec),
            runtime.start(id),
            runtime.kill(id, KILL),
            runtime.remove(id),
            runtime.inspect(id),
            runtime.list(),
            runtime.logs(id, 10),
            runtime.exec(id, &program),
            node.images.list(),
            node.another(|_| {}),
        )
    };
    let all = in_time(all).await;
    assert_unavailable(all.0);
    assert_unavailable(all.1);
    assert_unavailable(all.2);
    assert_unavailable(all.3);
    assert_unavailable(all.4);
    assert_unavailable(all.5);
    assert_unavailable(all.6);
    assert_unavailable(all.7);
    assert_unavailable(all.8);
    assert_unavailable(all.9);
    assert_unavailable(all.10);
}

/// A wait for a container's end that has begun.
pub struct Wait(JoinSet<Result<ExitStatus>>);

impl Wait {
    pub fn begin(node: &Node, id: &ContainerId) -> Self {
        let (runtime, id) = (node.runtime.clone(), id.clone());
        Self(JoinSet::from_iter([async move { runtime.wait(&id).await }]))
    }

    /// The end.
    pub async fn end(self) -> ExitStatus {
        let ends = in_time(self.0.join_all()).await;
        let end = ends.into_iter().next();
        end.expect("one wait").expect("it goes on")
    }
}
