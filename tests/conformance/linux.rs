//! What only the engine without a daemon promises: nothing of a container is in the host's mount table, its monitor is small
//! and holds nothing, both streams of output are one.

use std::fs;

use crate::engine::TestEngine;

#[tokio::test]
async fn the_hosts_mount_table_shows_nothing_of_a_container() {
    let engine = TestEngine::youki().await;
    let id = engine.launch(&engine.shell("sleep 1000")).await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&id.0), "{mounts}");
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
async fn bytes_that_are_no_text_are_kept() {
    let engine = TestEngine::youki().await;
    let script = r"printf 'a\377\376\r\nc\342\202\n'";
    let id = engine.launch(&engine.shell(script)).await;
    engine.runtime.wait(&id).await.expect("wait");
    let log = engine.runtime.logs(&id, 100).await.expect("logs");
    assert_eq!(log, b"a\xff\xfe\r\nc\xe2\x82\n");
    engine.close().await;
}

#[tokio::test]
async fn a_name_file_takes_the_place_of_a_link_and_the_image_stays_as_it_is() {
    let engine = TestEngine::youki().await;
    let script =
        "cat /etc/hostname; grep -c inside /etc/hosts; readlink /etc/hostname; echo x > /tmp/made";
    assert_eq!(engine.output(script).await, "inside\n1\n");
    assert!(!engine.path("busybox/tmp/made").exists());
    engine.close().await;
}
