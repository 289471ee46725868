//! A second program in a container.

use std::time::Duration;

use backendai_agent::runtime::{ContainerId, ExecOutput, RuntimeError};

use crate::engine::{TestEngine, cgroup_of, exec_spec, members, processes, unified};

contract! {
    with fake {
        output_and_code_of_a_program_are_told_apart
        another_user_has_no_capabilities
        environment_and_folder_are_those_asked_for
        a_program_or_folder_that_is_not_there_is_a_wrong_request
        a_program_that_runs_too_long_is_killed
        a_program_that_nobody_waits_for_any_more_is_killed
        a_program_whose_time_is_over_before_it_begins_is_killed
        a_flood_is_cut_at_16_mib_and_does_not_block_the_program
        what_a_program_leaves_running_does_not_hold_the_answer
        many_programs_may_run_at_once
        a_program_that_runs_ends_with_its_container
        it_may_read_and_write_what_the_container_does
    }
    without fake {
        // The fake has no cgroups.
        it_runs_in_the_namespaces_and_cgroups_of_the_container
        // The fake has no filter of system calls.
        it_has_no_more_rights_than_the_first_process
    }
}

async fn sleeper(engine: &TestEngine) -> ContainerId {
    engine.launch(&engine.shell("sleep 1000")).await
}

async fn shell(engine: &TestEngine, id: &ContainerId, script: &str) -> ExecOutput {
    engine
        .runtime
        .exec(id, &exec_spec(&["sh", "-c", script]))
        .await
        .expect("exec")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn output_and_code_of_a_program_are_told_apart(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let output = shell(&engine, &id, "echo out; echo err >&2; exit 9").await;
    assert_eq!(
        output,
        ExecOutput {
            code: 9,
            stdout: b"out\n".into(),
            stderr: b"err\n".into()
        }
    );
    assert_eq!(shell(&engine, &id, "kill -9 $$").await.code, 137);
    engine.close().await;
}

async fn it_runs_in_the_namespaces_and_cgroups_of_the_container(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let kinds = "for n in pid mnt net ipc uts cgroup; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done";
    let links = text(&shell(&engine, &id, kinds).await.stdout);
    let links: Vec<_> = links.lines().collect();
    assert_eq!(links.len(), 12);
    assert!(links.chunks(2).all(|pair| pair[0] == pair[1]), "{links:?}");
    let cgroup = cgroup_of(&engine, &id).await.folder("pids");
    let before = members(&cgroup);
    let groups = text(&shell(&engine, &id, "cat /proc/self/cgroup").await.stdout);
    // Seen from inside, the container's cgroup is the root.
    let roots: &[&str] = if unified() {
        &["0::/"]
    } else {
        &[":memory:/", ":pids:/", ":cpu:/"]
    };
    for root in roots {
        assert!(groups.lines().any(|line| line.ends_with(root)), "{groups}");
    }
    assert_eq!(members(&cgroup), before, "it has gone");
    engine.close().await;
}

async fn it_has_no_more_rights_than_the_first_process(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let of = |pid: &str| format!("grep -e ^Cap -e Seccomp: -e NoNewPrivs /proc/{pid}/status");
    let first = text(&shell(&engine, &id, &of("1")).await.stdout);
    let own = text(&shell(&engine, &id, &of("self")).await.stdout);
    assert_eq!(own, first);
    assert!(own.contains("Seccomp:\t2"));
    engine.close().await;
}

async fn another_user_has_no_capabilities(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mut spec = exec_spec(&["sh", "-c", "id -u; id -g; grep CapEff /proc/self/status"]);
    spec.user = (1000, 1001);
    let output = engine.runtime.exec(&id, &spec).await.expect("exec");
    assert_eq!(
        text(&output.stdout),
        "1000\n1001\nCapEff:\t0000000000000000\n"
    );
    engine.close().await;
}

async fn environment_and_folder_are_those_asked_for(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mut spec = exec_spec(&["sh", "-c", "pwd; echo $FROM_IMAGE $OWN"]);
    spec.cwd = "/etc".into();
    spec.env = vec![("OWN".to_owned(), "own".to_owned())];
    let output = engine.runtime.exec(&id, &spec).await.expect("exec");
    assert_eq!(text(&output.stdout), "/etc\nyes own\n");
    engine.close().await;
}

async fn a_program_or_folder_that_is_not_there_is_a_wrong_request(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mut elsewhere = exec_spec(&["true"]);
    elsewhere.cwd = "/nowhere".into();
    for spec in [exec_spec(&["no-such-program"]), elsewhere, exec_spec(&[])] {
        let error = engine.runtime.exec(&id, &spec).await.expect_err("wrong");
        assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
    }
    engine.close().await;
}

async fn a_program_that_runs_too_long_is_killed(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mark = format!("1001.{}", std::process::id());
    let mut spec = exec_spec(&["sleep", &mark]);
    spec.time_limit = Duration::from_millis(200);
    let error = engine.runtime.exec(&id, &spec).await.expect_err("too long");
    assert!(error.to_string().contains("200ms"), "{error}");
    assert_gone(&mark).await;
    engine.close().await;
}

async fn a_program_that_nobody_waits_for_any_more_is_killed(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mark = format!("1004.{}", std::process::id());
    let spec = exec_spec(&["sleep", &mark]);
    let begun = async {
        while processes(&mark).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = engine.runtime.exec(&id, &spec) => panic!("{ended:?}"),
        () = begun => {}
    }
    engine.runtime.settle().await;
    assert_gone(&mark).await;
    engine.close().await;
}

async fn a_program_whose_time_is_over_before_it_begins_is_killed(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let mark = format!("1006.{}", std::process::id());
    let mut spec = exec_spec(&["sleep", &mark]);
    for limit in [1, 3, 10, 30] {
        spec.time_limit = Duration::from_millis(limit);
        engine.runtime.exec(&id, &spec).await.expect_err("too long");
    }
    engine.runtime.settle().await;
    assert_gone(&mark).await;
    // Nor does one begin later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(processes(&mark), []);
    engine.close().await;
}

/// What was killed may take its time to go.
async fn assert_gone(mark: &str) {
    for _ in 0..500 {
        if processes(mark).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(processes(mark), []);
}

async fn a_flood_is_cut_at_16_mib_and_does_not_block_the_program(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let output = shell(&engine, &id, "yes | head -c 20000000; echo done >&2").await;
    assert_eq!((output.code, output.stdout.len()), (0, 16 << 20));
    assert_eq!(text(&output.stderr), "done\n");
    engine.close().await;
}

async fn what_a_program_leaves_running_does_not_hold_the_answer(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let output = shell(&engine, &id, "echo first; sleep 1000 &").await;
    assert_eq!((output.code, text(&output.stdout).as_str()), (0, "first\n"));
    engine.close().await;
}

async fn many_programs_may_run_at_once(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let runs = (0..8).map(|code| {
        let (engine, id) = (&engine, &id);
        async move { shell(engine, id, &format!("echo {code}; exit {code}")).await }
    });
    let outputs = futures_util::future::join_all(runs).await;
    for (code, output) in outputs.into_iter().enumerate() {
        assert_eq!(text(&output.stdout), format!("{code}\n"));
        assert_eq!(usize::try_from(output.code).ok(), Some(code));
    }
    engine.close().await;
}

async fn a_program_that_runs_ends_with_its_container(engine: TestEngine) {
    let id = sleeper(&engine).await;
    let kill = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        engine.runtime.kill(&id, 9).await
    };
    let spec = exec_spec(&["sleep", "1000"]);
    let (end, killed) = tokio::join!(engine.runtime.exec(&id, &spec), kill);
    killed.expect("kill");
    // It was killed, or the engine says that the container is gone.
    assert!(end.is_err() || end.is_ok_and(|output| output.code == 137));
    engine.close().await;
}

async fn it_may_read_and_write_what_the_container_does(engine: TestEngine) {
    let id = engine
        .launch(&engine.shell(
            "echo from first > /tmp/one; while ! [ -e /tmp/two ]; do sleep 0.05; done; exit 5",
        ))
        .await;
    let script = "while ! [ -s /tmp/one ]; do sleep 0.05; done; cat /tmp/one; touch /tmp/two";
    assert_eq!(
        text(&shell(&engine, &id, script).await.stdout),
        "from first\n"
    );
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 5);
    engine.close().await;
}
