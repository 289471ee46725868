//! What a container sees and what the host sees of it.

use std::fs;
use std::path::PathBuf;

use backendai_agent::runtime::{ContainerId, DeviceNode, Mount, MountKind, NetworkMode, Seccomp};

use crate::engine::{TestEngine, processes};

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount {
        kind: MountKind::Bind(source),
        target: target.into(),
        read_only,
    }
}

async fn pid_of(engine: &TestEngine, id: &ContainerId) -> i32 {
    let info = engine.runtime.inspect(id).await.expect("inspect");
    info.pid.expect("it runs")
}

#[tokio::test]
async fn a_container_has_namespaces_of_its_own() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let pid = pid_of(&engine, &id).await;
    for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    engine.close().await;
}

#[tokio::test]
async fn the_first_process_is_number_one_and_sees_no_other() {
    let engine = TestEngine::youki().await;
    let log = engine.output("echo $$; ls /proc | grep -c '^[0-9]'").await;
    let count: i32 = log.lines().nth(1).expect("count").parse().expect("number");
    assert!(log.starts_with("1\n") && count <= 3, "{log}");
    engine.close().await;
}

#[tokio::test]
async fn the_hosts_network_is_shared_only_when_asked() {
    let engine = TestEngine::youki().await;
    let host = fs::read_link("/proc/self/ns/net").expect("namespace");
    let host = host.to_string_lossy().into_owned() + "\n";
    let mut spec = engine.shell("readlink /proc/self/ns/net");
    assert_ne!(engine.output_of(&spec).await, host);
    spec.network = NetworkMode::Host;
    assert_eq!(engine.output_of(&spec).await, host);
    engine.close().await;
}

#[tokio::test]
async fn without_a_network_there_is_only_the_loopback_interface() {
    let engine = TestEngine::youki().await;
    let log = engine
        .output("ip -o link | wc -l; ip -o link | grep -c lo:")
        .await;
    assert_eq!(log, "1\n1\n");
    engine.close().await;
}

#[tokio::test]
async fn a_read_only_mount_cannot_be_written_and_a_writable_one_reaches_the_host() {
    let engine = TestEngine::youki().await;
    for name in ["ro", "rw"] {
        fs::create_dir(engine.path(name)).expect("folder");
    }
    fs::write(engine.path("ro/file"), "seen").expect("write");
    let mut spec = engine.shell("cat /opt/backend.ai/file; touch /opt/backend.ai/x 2>&1; mount -o remount,rw /opt/backend.ai 2>&1; echo new > /home/work/made; echo");
    spec.mounts = vec![
        bind(engine.path("ro"), "/opt/backend.ai", true),
        bind(engine.path("rw"), "/home/work", false),
    ];
    let log = engine.output_of(&spec).await;
    assert!(
        log.starts_with("seen") && log.contains("Read-only file system"),
        "{log}"
    );
    assert!(!engine.path("ro/x").exists());
    assert_eq!(
        fs::read_to_string(engine.path("rw/made")).expect("read"),
        "new\n"
    );
    engine.close().await;
}

#[tokio::test]
async fn a_file_can_be_mounted_on_a_path_that_the_image_lacks() {
    let engine = TestEngine::youki().await;
    fs::write(engine.path("one"), "text").expect("write");
    let mut spec = engine.shell("cat /some/where/file");
    spec.mounts = vec![bind(engine.path("one"), "/some/where/file", true)];
    assert_eq!(engine.output_of(&spec).await, "text");
    engine.close().await;
}

#[tokio::test]
async fn a_tmpfs_has_its_size() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("df -k /scratch | tail -n 1; df -k /dev/shm | tail -n 1");
    spec.mounts = vec![Mount {
        kind: MountKind::Tmpfs(8 << 20),
        target: "/scratch".into(),
        read_only: false,
    }];
    spec.limits.shm_bytes = Some(16 << 20);
    let log = engine.output_of(&spec).await;
    let sizes: Vec<_> = log
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(sizes, ["8192", "16384"], "{log}");
    engine.close().await;
}

#[tokio::test]
async fn what_a_container_writes_stays_out_of_the_image_and_of_other_containers() {
    let engine = TestEngine::youki().await;
    engine
        .output("echo x > /tmp/made; echo y > /bin/echo2")
        .await;
    assert!(!engine.path("busybox/tmp/made").exists());
    assert_eq!(engine.output("ls /tmp").await, "");
    engine.close().await;
}

#[tokio::test]
async fn the_hosts_mount_table_shows_nothing_of_a_container() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&id.0), "{mounts}");
    engine.close().await;
}

#[tokio::test]
async fn the_default_filter_is_on_and_can_be_left_out() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("grep Seccomp: /proc/1/status; grep NoNewPrivs /proc/1/status; unshare -n true 2>&1 || true");
    let log = engine.output_of(&spec).await;
    assert!(
        log.starts_with("Seccomp:\t2\nNoNewPrivs:\t1\n") && log.contains("not permitted"),
        "{log}"
    );
    spec.no_new_privileges = false;
    let log = engine.output_of(&spec).await;
    assert!(log.starts_with("Seccomp:\t2\nNoNewPrivs:\t0\n"), "{log}");
    spec.seccomp = Seccomp::Unconfined;
    let log = engine.output_of(&spec).await;
    assert!(log.starts_with("Seccomp:\t0\nNoNewPrivs:\t0\n"), "{log}");
    engine.close().await;
}

#[tokio::test]
async fn the_capabilities_are_those_asked_for_and_no_others() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("grep ^Cap /proc/1/status");
    spec.capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]
        .map(str::to_owned)
        .into();
    let log = engine.output_of(&spec).await;
    let set = "00000000000000a1";
    let none = "0000000000000000";
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{none}\n"
    );
    assert_eq!(log, wanted);
    engine.close().await;
}

#[tokio::test]
async fn the_kernels_secrets_are_masked_and_its_settings_read_only() {
    let engine = TestEngine::youki().await;
    let script = "wc -c < /proc/keys; ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/domainname) 2>&1; mkdir /sys/fs/x 2>&1; true";
    let log = engine.output(script).await;
    assert!(log.starts_with("0\n0\n"), "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 2, "{log}");
    engine.close().await;
}

#[tokio::test]
async fn ordinary_devices_are_there_and_others_cannot_be_opened() {
    let engine = TestEngine::youki().await;
    let script = "head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c 2 /dev/urandom | wc -c; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem 2>&1; true";
    let log = engine.output(script).await;
    assert!(
        log.starts_with("3\n2\n") && log.contains("not permitted"),
        "{log}"
    );
    engine.close().await;
}

#[tokio::test]
async fn a_device_that_was_asked_for_can_be_used() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("stat -c '%t %T %a' /dev/backend; head -c 1 /dev/backend | wc -c");
    // Major 1, minor 1 is memory, which no container has by itself; reading its first byte is allowed to root.
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

#[tokio::test]
async fn the_environment_is_the_images_overridden_by_the_request() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("echo $FROM_IMAGE $BOTH $OWN; echo $PATH");
    spec.env = vec![
        ("BOTH".into(), "request".into()),
        ("OWN".into(), "a=b c".into()),
    ];
    let log = engine.output_of(&spec).await;
    assert!(log.starts_with("yes request a=b c\n/"), "{log}");
    engine.close().await;
}

#[tokio::test]
async fn nothing_of_the_agents_environment_or_files_comes_in() {
    let engine = TestEngine::youki().await;
    let log = engine.output("env; ls -l /proc/1/fd").await;
    assert!(!log.contains("CARGO"), "{log}");
    let files: Vec<_> = log.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(files.len(), 3, "{log}");
    engine.close().await;
}

#[tokio::test]
async fn the_working_folder_is_made_and_the_host_name_set() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell(
        "pwd; hostname; cat /etc/hostname; grep inside /etc/hosts | wc -l; readlink /etc/hostname",
    );
    spec.cwd = "/home/work/deep".into();
    let (status, log) = engine.run(&spec).await;
    assert_eq!(
        (status.code, log.as_str()),
        (1, "/home/work/deep\ninside\ninside\n1\n")
    );
    engine.close().await;
}

#[tokio::test]
async fn standard_input_is_empty() {
    let engine = TestEngine::youki().await;
    assert_eq!(engine.output("cat; echo done").await, "done\n");
    engine.close().await;
}

#[tokio::test]
async fn the_log_keeps_both_streams_in_order() {
    let engine = TestEngine::youki().await;
    let log = engine
        .output("for i in $(seq 200); do echo o$i; echo e$i >&2; done")
        .await;
    let wanted: String = (1..=200).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert_eq!(log, wanted);
    engine.close().await;
}

#[tokio::test]
async fn the_log_is_bounded_and_keeps_the_end() {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("yes 0123456789abcdef | head -c 4000000; echo; echo last");
    spec.log_limit = 64 << 10;
    let (_, log) = engine.run(&spec).await;
    assert!(
        log.len() <= 64 << 10 && log.len() >= 32 << 10,
        "{}",
        log.len()
    );
    assert!(log.ends_with("\nlast\n"), "{}", &log[log.len() - 40..]);
    engine.close().await;
}

#[tokio::test]
async fn the_tail_of_the_log_is_as_long_as_asked() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("echo abcdef")).await;
    engine.runtime.wait(&id).await.expect("wait");
    assert_eq!(engine.runtime.logs(&id, 4).await.expect("logs"), b"def\n");
    assert!(engine.runtime.logs(&id, 0).await.expect("logs").is_empty());
    engine.close().await;
}

#[tokio::test]
async fn a_signal_reaches_the_first_process() {
    let engine = TestEngine::youki().await;
    let id = engine
        .launch(&engine.shell("trap 'exit 42' TERM; echo ready; while true; do sleep 0.05; done"))
        .await;
    engine.until_logged(&id, "ready").await;
    engine.runtime.kill(&id, 15).await.expect("kill");
    assert_eq!(engine.runtime.wait(&id).await.expect("wait").code, 42);
    engine.close().await;
}

#[tokio::test]
async fn a_number_that_is_no_signal_is_refused() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    for signal in [-1, 0, 4711] {
        let error = engine
            .runtime
            .kill(&id, signal)
            .await
            .expect_err("no signal");
        assert!(error.to_string().contains(&signal.to_string()), "{error}");
    }
    engine.close().await;
}

#[tokio::test]
async fn processes_in_the_background_die_with_the_first() {
    let engine = TestEngine::youki().await;
    let mark = format!("1000.{}", std::process::id());
    let (status, _) = engine
        .run(&engine.shell(&format!("sleep {mark} & sleep {mark} & exit 4")))
        .await;
    assert_eq!(status.code, 4);
    assert_eq!(processes(&format!("sleep {mark}")), []);
    engine.close().await;
}

/// Waits until a monitor is the small program that only watches.
async fn until_small(pid: i32) {
    for _ in 0..2000 {
        let program = fs::read_link(format!("/proc/{pid}/exe")).expect("it lives");
        if program.to_string_lossy().contains("memfd:") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the monitor stays what it was");
}

#[tokio::test]
async fn no_program_can_be_written_through_a_monitor() {
    let engine = TestEngine::youki().await;
    let spec = engine.shell("sleep 1000");
    let id = engine.runtime.create(&spec).await.expect("create");
    let pid = engine.monitor(&id);
    // A write is refused now because it runs, and must be refused later too.
    let program = fs::File::open(format!("/proc/{pid}/exe")).expect("open");
    let flags = rustix::fs::fstatvfs(&program).expect("statvfs").f_flag;
    assert!(
        flags.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        "{flags:?}"
    );
    engine.runtime.start(&id).await.expect("start");
    until_small(pid).await;
    let program = fs::File::open(format!("/proc/{pid}/exe")).expect("open");
    let seals = rustix::fs::fcntl_get_seals(&program).expect("seals");
    assert!(seals.contains(rustix::fs::SealFlags::WRITE), "{seals:?}");
    engine.close().await;
}

#[tokio::test]
async fn the_monitor_of_a_running_container_takes_less_than_two_mebibytes() {
    let engine = TestEngine::youki().await;
    let spec = engine.shell("yes | head -n 100000; echo ready; sleep 1000");
    let id = engine.launch(&spec).await;
    let pid = engine.monitor(&id);
    until_small(pid).await;
    engine.until_logged(&id, "ready").await;
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let kib: u64 = sizes.sum();
    assert!((1..2048).contains(&kib), "{kib} KiB\n{text}");
    engine.close().await;
}

#[tokio::test]
async fn a_monitor_holds_no_descriptors_but_output_lock_and_log() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let pid = engine.monitor(&id);
    until_small(pid).await;
    let inside = |text: &str| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
        let links = fds.filter_map(|fd| fs::read_link(fd.expect("fd").path()).ok());
        let links: Vec<_> = links.map(|link| link.display().to_string()).collect();
        let found = links.iter().filter(|link| link.contains(text)).count();
        (found, links)
    };
    for foreign in ["socket:", "memfd:", "seccomp"] {
        let (found, links) = inside(foreign);
        assert_eq!(found, 0, "{links:?}");
    }
    engine.close().await;
}
