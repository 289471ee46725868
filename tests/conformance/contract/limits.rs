//! Limits, as Linux keeps them: in files of cgroup version 1 on hybrid machines, of version 2 elsewhere.

use backendai_agent::runtime::Limits;

use crate::engine::{TestEngine, cgroup_of, members, unified};

contract! {
    with fake {
        a_limit_that_cannot_be_applied_is_an_error_and_leaves_nothing
    }
    without fake {
        // The fake has no cgroups, and nothing that would hold a program to its limits.
        the_limits_are_in_the_cgroups
        the_first_process_is_in_the_cgroup_that_is_told
        a_container_without_limits_has_none
        a_container_that_takes_too_much_memory_is_killed_and_that_is_told
        a_child_that_took_too_much_memory_is_told_though_the_first_process_ended_well
        a_fork_bomb_stops_at_the_limit
    }
}

async fn the_limits_are_in_the_cgroups(engine: TestEngine) {
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
    let cgroup = cgroup_of(&engine, &id).await;
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
        assert_eq!(cgroup.file(controller, file), value, "{file}");
    }
    engine.close().await;
}

async fn the_first_process_is_in_the_cgroup_that_is_told(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    let pid = info.pid.expect("it runs");
    let cgroup = cgroup_of(&engine, &id).await;
    for controller in ["cpu", "memory", "pids", "devices", "cpuset"] {
        let members = members(&cgroup.folder(controller));
        assert!(members.contains(&pid), "{controller}: {members:?}");
    }
    engine.close().await;
}

async fn a_container_without_limits_has_none(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let (file, none) = if unified() {
        ("cpu.max", "max 100000")
    } else {
        ("cpu.cfs_quota_us", "-1")
    };
    let cgroup = cgroup_of(&engine, &id).await;
    assert_eq!(cgroup.file("cpu", file), none);
    assert_eq!(cgroup.file("pids", "pids.max"), "max");
    engine.close().await;
}

async fn a_container_that_takes_too_much_memory_is_killed_and_that_is_told(engine: TestEngine) {
    let mut spec = engine.shell("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.limits.memory_bytes = Some(32 << 20);
    spec.limits.swap_bytes = Some(0);
    let (status, log) = engine.run(&spec).await;
    assert!(status.oom_killed && status.code == 137, "{status:?} {log}");
    engine.close().await;
}

async fn a_child_that_took_too_much_memory_is_told_though_the_first_process_ended_well(
    engine: TestEngine,
) {
    let mut spec = engine.shell("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?");
    spec.limits.memory_bytes = Some(32 << 20);
    spec.limits.swap_bytes = Some(0);
    let (status, log) = engine.run(&spec).await;
    assert!(status.oom_killed && status.code == 0, "{status:?} {log}");
    // The shell says more on the other stream, whose lines may come first or last.
    assert!(log.lines().any(|line| line == "137"), "{log}");
    engine.close().await;
}

async fn a_fork_bomb_stops_at_the_limit(engine: TestEngine) {
    let mut spec = engine.shell("for i in $(seq 50); do sleep 1000 & done; echo all");
    spec.limits.pids = Some(10);
    let id = engine.launch(&spec).await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 1 << 20).await.expect("logs");
    assert!(String::from_utf8_lossy(&log).contains("can't fork"));
    engine.close().await;
}

async fn a_limit_that_cannot_be_applied_is_an_error_and_leaves_nothing(engine: TestEngine) {
    let cpuset = Limits {
        cpuset: Some("4000".to_owned()),
        ..Limits::default()
    };
    let quota = Limits {
        cpu_quota_us: Some(1),
        ..Limits::default()
    };
    for limits in [cpuset, quota] {
        let mut spec = engine.shell("true");
        spec.limits = limits;
        let made = engine.runtime.create(&spec).await;
        made.expect_err("Linux refuses");
        engine.assert_nothing_left();
    }
    engine.close().await;
}
