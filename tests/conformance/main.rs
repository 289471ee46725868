//! What every engine must do, looked at from Linux: one list of contract tests, run on each engine.

mod engine;

use backendai_agent::runtime::{ContainerRuntime, ContainerState};
use engine::TestEngine;

#[tokio::test]
async fn a_container_runs_and_its_exit_code_is_told_as_often_as_asked() {
    let engine = TestEngine::youki().await;
    let spec = engine.shell("echo out; echo err >&2; exit 7");
    let id = engine.runtime.create(&spec).await.expect("create");
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(info.state, ContainerState::Created);
    engine.runtime.start(&id).await.expect("start");
    for _ in 0..2 {
        assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 7);
    }
    assert_eq!(
        engine.runtime.logs(&id, 100).await.expect("logs"),
        b"out\nerr\n"
    );
    engine.runtime.remove(&id).await.expect("remove");
    engine.close().await;
}
