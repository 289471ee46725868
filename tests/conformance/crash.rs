//! The agent or a monitor dies at a bad time.

use std::fs;

use backendai_agent::runtime::ContainerState;

use crate::engine::TestEngine;

fn kill(pid: i32) {
    let status = std::process::Command::new("/bin/busybox")
        .args(["kill", "-9", &pid.to_string()])
        .status();
    assert!(status.expect("kill").success());
}

#[tokio::test]
async fn a_container_dies_with_its_monitor_and_wait_says_so() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    kill(engine.monitor(&id));
    for _ in 0..2 {
        assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 137);
    }
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!((info.state, info.pid), (ContainerState::Stopped, None));
    engine.runtime.remove(&id).await.expect("remove");
    engine.assert_nothing_left();
}

#[tokio::test]
async fn a_container_that_was_never_started_dies_with_its_monitor_too() {
    let engine = TestEngine::youki().await;
    let id = engine
        .runtime
        .create(&engine.shell("sleep 1000"))
        .await
        .expect("create");
    let pid = engine
        .runtime
        .inspect(&id)
        .await
        .expect("inspect")
        .pid
        .expect("pid");
    kill(engine.monitor(&id));
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 137);
    let state = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(state.is_empty() || state.contains("State:\tZ"), "{state}");
    let start = engine.runtime.start(&id).await;
    start.expect_err("it is dead");
    engine.close().await;
}

#[tokio::test]
async fn a_container_whose_user_changed_dies_with_its_monitor_all_the_same() {
    let engine = TestEngine::youki().await;
    // A change of user clears the signal that Linux would send at the monitor's death.
    let id = engine.launch(&engine.shell("echo ready; sleep 1000")).await;
    engine.until_logged(&id, "ready").await;
    kill(engine.monitor(&id));
    engine.runtime.remove(&id).await.expect("remove");
    engine.assert_nothing_left();
}

#[tokio::test]
async fn what_a_dead_agent_left_half_made_is_gone_after_list() {
    let engine = TestEngine::youki().await;
    let torn = engine.path("run/containers").join("f".repeat(64));
    fs::create_dir(&torn).expect("folder");
    fs::create_dir_all(
        engine
            .path("state/containers")
            .join("f".repeat(64))
            .join("upper"),
    )
    .expect("folder");
    assert!(engine.runtime.list().await.expect("list").is_empty());
    engine.assert_nothing_left();
    engine.close().await;
}

#[tokio::test]
async fn a_pid_that_is_another_processes_now_is_not_killed() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("exit 0")).await;
    engine.runtime.wait(&id).await.expect("wait");
    // As if this very test had been given the dead process's number.
    let file = engine.path("run/containers").join(&id.0).join("init.json");
    fs::write(
        &file,
        format!(r#"{{"pid": {}, "began": 1}}"#, std::process::id()),
    )
    .expect("write");
    engine.runtime.kill(&id, 9).await.expect("kill");
    engine.runtime.remove(&id).await.expect("remove");
    engine.close().await;
}

#[tokio::test]
async fn what_a_lost_run_folder_leaves_is_gone_at_the_next_open() {
    let mut engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    // A reboot empties the run folder and kills all; what containers wrote stays.
    let lost = "e".repeat(64);
    fs::create_dir_all(engine.path("state/containers").join(&lost).join("upper/a"))
        .expect("folder");
    // A create that was cut off before its folder had a name.
    fs::create_dir(engine.path("run/containers").join(format!(".{lost}.0"))).expect("folder");
    engine.reopen().await;
    let names = |folder: &str| {
        let entries = fs::read_dir(engine.path(folder)).expect("list");
        let names = entries.map(|entry| entry.expect("entry").file_name());
        names.map(|name| name.into_string().expect("UTF-8"))
    };
    for folder in ["run/containers", "state/containers"] {
        assert_eq!(
            names(folder).collect::<Vec<_>>(),
            [id.0.as_str()],
            "{folder}"
        );
    }
    engine.close().await;
}

#[tokio::test]
async fn what_containers_of_another_run_folder_wrote_is_left_alone() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let neighbour = engine.neighbour().await;
    assert!(neighbour.list().await.expect("list").is_empty());
    drop(neighbour);
    let written = engine.path("state/containers").join(&id.0).join("upper");
    assert!(written.is_dir(), "{}", written.display());
    engine.close().await;
}

#[tokio::test]
async fn a_monitor_that_ends_by_itself_is_no_zombie() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 0.1")).await;
    // Nobody waits for the container, nobody removes it.
    let process = format!("/proc/{}", engine.monitor(&id));
    for _ in 0..2000 {
        if !fs::exists(&process).expect("proc") {
            return engine.close().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the monitor stays");
}
