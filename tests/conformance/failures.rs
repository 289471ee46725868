//! A step of `create` fails on the machine's side: the error says so, and nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backendai_agent::runtime::{ContainerRuntime, ContainerSpec, NetworkMode, RuntimeError};

use crate::engine::{PROGRAM, TestEngine};

/// With a network too, so that there is more to undo.
fn spec(engine: &TestEngine) -> ContainerSpec {
    let mut spec = engine.shell("sleep 1000");
    spec.network = NetworkMode::Bridge;
    spec
}

async fn fails(runtime: &dyn ContainerRuntime, spec: &ContainerSpec, names: &str) {
    let error = runtime.create(spec).await.expect_err("it cannot");
    let RuntimeError::Engine { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains(names), "{source}");
    assert!(runtime.list().await.expect("list").is_empty());
}

async fn fails_with_monitor(script: &str, mode: u32, names: &str) {
    let engine = TestEngine::youki().await;
    let monitor = engine.path("monitor");
    fs::write(&monitor, script).expect("write");
    fs::set_permissions(&monitor, fs::Permissions::from_mode(mode)).expect("mode");
    let runtime = engine.broken(&monitor, &engine.path("busybox")).await;
    fails(&*runtime, &spec(&engine), names).await;
    engine.assert_nothing_left();
}

#[tokio::test]
async fn a_monitor_that_cannot_be_started() {
    fails_with_monitor("", 0o644, "starting the monitor").await;
}

#[tokio::test]
async fn a_monitor_that_dies_at_once() {
    fails_with_monitor("#!/bin/sh\nexit 1\n", 0o755, "the monitor died").await;
}

#[tokio::test]
async fn a_monitor_that_is_killed_while_it_makes_the_container() {
    fails_with_monitor("#!/bin/sh\nkill -9 $$\n", 0o755, "the monitor died").await;
}

#[tokio::test]
async fn a_root_that_cannot_be_mounted() {
    let engine = TestEngine::youki().await;
    let missing = engine.path("no-such-root");
    let runtime = engine.broken(Path::new(PROGRAM), &missing).await;
    fails(&*runtime, &spec(&engine), "mounting the overlay").await;
    engine.assert_nothing_left();
}

#[tokio::test]
async fn a_folder_for_what_it_writes_that_cannot_be_made() {
    let engine = TestEngine::youki().await;
    let spec = spec(&engine);
    let state = engine.path("state/containers").join(&spec.id.0);
    fs::create_dir(&state).expect("folder");
    fs::write(state.join("upper"), "no folder").expect("write");
    fails(&*engine.runtime, &spec, "state/containers").await;
    engine.assert_nothing_left();
    let again = engine.runtime.create(&spec).await;
    again.expect("what was in the way is gone too");
    engine.close().await;
}

#[tokio::test]
async fn a_folder_of_records_that_is_gone() {
    let engine = TestEngine::youki().await;
    let containers = engine.path("run/containers");
    fs::remove_dir(&containers).expect("empty");
    let error = engine.runtime.create(&spec(&engine)).await;
    error.expect_err("there is no place for the record");
    engine.assert_nothing_left();
}
