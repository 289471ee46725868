//! What a program sees: processes, names, environment, folder, files, devices.

use std::fs;

use backendai_agent::runtime::{DeviceNode, NetworkMode};

use crate::engine::{TestEngine, own_namespace, pid_of};

contract! {
    with fake {
        the_arguments_are_passed_as_they_are
        the_environment_is_the_images_overridden_by_the_request
        variables_may_hold_anything_but_a_zero_byte
        the_working_folder_is_made
        the_host_name_is_the_one_asked_for
        without_a_host_name_it_is_the_beginning_of_the_id
        standard_input_is_empty
        standard_output_is_no_terminal
        what_a_container_writes_stays_out_of_other_containers
        the_pid_that_is_told_is_the_containers
    }
    without fake {
        // The fake shares networks, shared memory and cgroups with the host.
        a_container_has_namespaces_of_its_own
        // The fake's /proc is the host's.
        a_program_sees_no_process_but_its_containers
        nothing_of_the_agents_environment_or_files_comes_in
        // The fake has no device rules.
        ordinary_devices_are_there_and_others_cannot_be_opened
        a_device_that_was_asked_for_can_be_used
    }
}

async fn a_container_has_namespaces_of_its_own(engine: TestEngine) {
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let pid = pid_of(&engine, &id).await;
    for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let its = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_ne!(its.display().to_string(), own_namespace(kind), "{kind}");
    }
    engine.close().await;
}

async fn a_program_sees_no_process_but_its_containers(engine: TestEngine) {
    // The shell, what it runs, and where the engine has one its init.
    let log = engine.output("ls /proc | grep '^[0-9]' | sort -n").await;
    let pids: Vec<i32> = log
        .lines()
        .map(|line| line.parse().expect("number"))
        .collect();
    assert!(pids[0] == 1 && pids.len() <= 5, "{log}");
    engine.close().await;
}

async fn the_arguments_are_passed_as_they_are(engine: TestEngine) {
    let mut spec = engine.shell("");
    spec.args = [
        "/bin/printf",
        "<%s>",
        "a b",
        "",
        "$HOME 'x' \"y\" \\",
        "ü\n*",
    ]
    .map(str::to_owned)
    .into();
    let log = engine.output_of(&spec).await;
    assert_eq!(log, "<a b><><$HOME 'x' \"y\" \\><ü\n*>");
    engine.close().await;
}

async fn the_environment_is_the_images_overridden_by_the_request(engine: TestEngine) {
    let mut spec = engine.shell("echo $FROM_IMAGE $BOTH $OWN; echo $PATH");
    spec.env = vec![
        ("BOTH".into(), "request".into()),
        ("OWN".into(), "a=b c".into()),
    ];
    let log = engine.output_of(&spec).await;
    assert!(log.starts_with("yes request a=b c\n/"), "{log}");
    engine.close().await;
}

async fn variables_may_hold_anything_but_a_zero_byte(engine: TestEngine) {
    let mut spec = engine.shell("printf '<%s>' \"$A\" \"$B\" \"$C\"");
    spec.env = vec![
        ("A".into(), "two\nlines\ttab".into()),
        ("B".into(), String::new()),
        ("C".into(), "ü=$HOME \\ \"'".into()),
    ];
    let log = engine.output_of(&spec).await;
    assert_eq!(log, "<two\nlines\ttab><><ü=$HOME \\ \"'>");
    engine.close().await;
}

async fn nothing_of_the_agents_environment_or_files_comes_in(engine: TestEngine) {
    let log = engine.output("env; ls -l /proc/$$/fd").await;
    assert!(!log.contains("CARGO"), "{log}");
    let files: Vec<_> = log.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(files.len(), 3, "{log}");
    engine.close().await;
}

async fn the_working_folder_is_made(engine: TestEngine) {
    let mut spec = engine.shell("pwd");
    spec.cwd = "/home/work/deep".into();
    assert_eq!(engine.output_of(&spec).await, "/home/work/deep\n");
    engine.close().await;
}

async fn the_host_name_is_the_one_asked_for(engine: TestEngine) {
    // The image's /etc/hostname is a link to another file, which must not lead out.
    let log = engine.output("hostname; cat /etc/hostname").await;
    assert_eq!(log, "inside\ninside\n");
    let host = fs::read_to_string("/etc/passwd").expect("read");
    assert_ne!(host, "inside\n");
    engine.close().await;
}

async fn without_a_host_name_it_is_the_beginning_of_the_id(engine: TestEngine) {
    let mut spec = engine.shell("hostname");
    spec.hostname = None;
    let id = engine.launch(&spec).await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 100).await.expect("logs");
    assert_eq!(String::from_utf8_lossy(&log), format!("{}\n", &id.0[..12]));
    engine.close().await;
}

async fn standard_input_is_empty(engine: TestEngine) {
    assert_eq!(engine.output("cat; echo done").await, "done\n");
    engine.close().await;
}

async fn standard_output_is_no_terminal(engine: TestEngine) {
    let log = engine
        .output("for i in 0 1 2; do [ -t $i ] && echo terminal; done; echo plain")
        .await;
    assert_eq!(log, "plain\n");
    engine.close().await;
}

async fn what_a_container_writes_stays_out_of_other_containers(engine: TestEngine) {
    engine
        .output("echo x > /tmp/made; echo y > /bin/echo2")
        .await;
    assert_eq!(
        engine.output("ls /tmp; ls /bin/echo2 2>&1 | wc -l").await,
        "1\n"
    );
    engine.close().await;
}

async fn ordinary_devices_are_there_and_others_cannot_be_opened(engine: TestEngine) {
    let script = "head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c 2 /dev/urandom | wc -c; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem 2>&1; true";
    let log = engine.output(script).await;
    assert!(
        log.starts_with("3\n2\n") && log.contains("not permitted"),
        "{log}"
    );
    engine.close().await;
}

async fn a_device_that_was_asked_for_can_be_used(engine: TestEngine) {
    let mut spec = engine.shell("stat -c '%t %T %a' /dev/backend; head -c 1 /dev/backend | wc -c");
    spec.devices = vec![DeviceNode {
        path: "/dev/backend".into(),
        kind: 'c',
        major: 1,
        minor: 5,
        mode: 0o660,
        access: "r".into(),
    }];
    assert_eq!(engine.output_of(&spec).await, "1 5 660\n1\n");
    engine.close().await;
}

async fn the_pid_that_is_told_is_the_containers(engine: TestEngine) {
    let mut spec = engine.shell("sleep 1000");
    spec.network = NetworkMode::Host;
    spec.env = vec![("MARK".into(), spec.id.0.clone())];
    let id = engine.runtime.create(&spec).await.expect("create");
    engine.runtime.start(&id).await.expect("start");
    let pid = pid_of(&engine, &id).await;
    // The program of a container that has just been started may not run yet.
    let environment = format!("/proc/{pid}/environ");
    for _ in 0..2000 {
        let text = fs::read(&environment).expect("it lives");
        if String::from_utf8_lossy(&text).contains(&spec.id.0) {
            return engine.close().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("process {pid} is another");
}
