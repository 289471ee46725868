//! Limits, as Linux keeps them: in files of cgroup version 1 on hybrid machines, of version 2 elsewhere.

use backendai_agent::runtime::Limits;

use crate::engine::{TestEngine, cgroup_file, cgroups, unified};

#[tokio::test]
async fn the_limits_are_in_the_cgroups() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("sleep 1000");
    spec.limits = Limits {
        cpu_quota_us: Some(50_000),
        cpu_period_us: None,
        cpuset: Some("0".to_owned()),
        memory_bytes: Some(64 << 20),
        swap_bytes: Some(0),
        pids: Some(20),
        shm_bytes: None,
    };
    let id = engine.launch(&spec).await;
    let version_1 = [
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("pids", "pids.max", "20"),
    ];
    let version_2 = [
        ("cpu", "cpu.max", "50000 100000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("memory", "memory.max", "67108864"),
        ("memory", "memory.swap.max", "0"),
        ("pids", "pids.max", "20"),
    ];
    for (controller, file, value) in if unified() { version_2 } else { version_1 } {
        assert_eq!(cgroup_file(&id, controller, file), value, "{file}");
    }
    engine.close().await;
}

#[tokio::test]
async fn the_first_process_is_in_the_cgroup_that_is_told() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        info.cgroup.as_deref(),
        Some(format!("/backendai/{id}").as_ref())
    );
    let pid = info.pid.expect("it runs").to_string();
    let (least, file) = if unified() {
        (1, "container/cgroup.procs")
    } else {
        (5, "cgroup.procs")
    };
    assert!(cgroups(&id).len() >= least);
    for controller in ["cpu", "memory", "pids", "devices", "cpuset"] {
        let tasks = cgroup_file(&id, controller, file);
        assert!(
            tasks.lines().any(|task| task == pid),
            "{controller}: {tasks}"
        );
    }
    engine.close().await;
}

#[tokio::test]
async fn a_container_without_limits_has_none() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let (file, none) = if unified() {
        ("cpu.max", "max 100000")
    } else {
        ("cpu.cfs_quota_us", "-1")
    };
    assert_eq!(cgroup_file(&id, "cpu", file), none);
    assert_eq!(cgroup_file(&id, "pids", "pids.max"), "max");
    engine.close().await;
}

#[tokio::test]
async fn a_container_that_takes_too_much_memory_is_killed_and_that_is_told() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.limits.memory_bytes = Some(32 << 20);
    spec.limits.swap_bytes = Some(0);
    let (status, log) = engine.run(&spec).await;
    assert!(status.oom_killed && status.code == 137, "{status:?} {log}");
    engine.close().await;
}

#[tokio::test]
async fn a_child_that_took_too_much_memory_is_told_though_the_first_process_ended_well() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?");
    spec.limits.memory_bytes = Some(32 << 20);
    spec.limits.swap_bytes = Some(0);
    let (status, log) = engine.run(&spec).await;
    assert!(status.oom_killed && status.code == 0, "{status:?} {log}");
    assert!(log.ends_with("137\n"), "{log}");
    engine.close().await;
}

#[tokio::test]
async fn a_fork_bomb_stops_at_the_limit() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("for i in $(seq 50); do sleep 1000 & done; echo all");
    spec.limits.pids = Some(10);
    let id = engine.launch(&spec).await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 1 << 20).await.expect("logs");
    assert!(String::from_utf8_lossy(&log).contains("can't fork"));
    engine.close().await;
}

#[tokio::test]
async fn a_limit_that_cannot_be_applied_is_an_error_and_leaves_nothing() {
    let engine = TestEngine::youki().await;
    for limits in [
        Limits {
            cpuset: Some("4000".to_owned()),
            ..Limits::default()
        },
        Limits {
            cpu_quota_us: Some(1),
            ..Limits::default()
        },
    ] {
        let mut spec = engine.shell("true");
        spec.limits = limits;
        engine
            .runtime
            .create(&spec)
            .await
            .expect_err("Linux refuses");
        engine.assert_nothing_left();
    }
    engine.close().await;
}
