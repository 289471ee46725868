//! What is shown of the host inside, and how.

use std::fs;
use std::path::PathBuf;

use backendai_agent::runtime::{Mount, MountKind};

use crate::engine::TestEngine;

contract! {
    with fake {
        a_read_only_mount_cannot_be_written_and_a_writable_one_reaches_the_host
        a_file_can_be_mounted_on_a_path_that_the_image_lacks
        a_mount_may_lie_in_another
        what_is_mounted_below_a_source_is_shown_too
        a_path_may_hold_colons_spaces_and_commas
        a_read_only_tmpfs_cannot_be_written
        a_mount_of_the_container_is_none_of_the_hosts
    }
    without fake {
        // The fake has no /dev/shm.
        a_tmpfs_has_its_size_and_may_hold_programs
    }
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount {
        kind: MountKind::Bind(source),
        target: target.into(),
        read_only,
    }
}

fn tmpfs(bytes: u64, read_only: bool) -> Mount {
    Mount {
        kind: MountKind::Tmpfs(bytes),
        target: "/scratch".into(),
        read_only,
    }
}

async fn a_read_only_mount_cannot_be_written_and_a_writable_one_reaches_the_host(
    engine: TestEngine,
) {
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
    let made = fs::read_to_string(engine.path("rw/made")).expect("read");
    assert_eq!(made, "new\n");
    engine.close().await;
}

async fn a_file_can_be_mounted_on_a_path_that_the_image_lacks(engine: TestEngine) {
    fs::write(engine.path("one"), "text").expect("write");
    let mut spec = engine.shell("cat /some/where/file");
    spec.mounts = vec![bind(engine.path("one"), "/some/where/file", true)];
    assert_eq!(engine.output_of(&spec).await, "text");
    engine.close().await;
}

async fn a_mount_may_lie_in_another(engine: TestEngine) {
    fs::create_dir_all(engine.path("outer/inner")).expect("folder");
    fs::create_dir(engine.path("other")).expect("folder");
    fs::write(engine.path("other/file"), "other").expect("write");
    let mut spec = engine.shell("cat /a/inner/file; touch /a/made /a/inner/made 2>&1");
    spec.mounts = vec![
        bind(engine.path("outer"), "/a", false),
        bind(engine.path("other"), "/a/inner", true),
    ];
    let (_, log) = engine.run(&spec).await;
    assert!(
        log.starts_with("other") && log.contains("Read-only"),
        "{log}"
    );
    assert!(engine.path("outer/made").exists());
    engine.close().await;
}

async fn what_is_mounted_below_a_source_is_shown_too(engine: TestEngine) {
    let below = engine.path("source/below");
    fs::create_dir_all(&below).expect("folder");
    rustix::mount::mount(
        "tmpfs",
        &below,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .expect("mount");
    fs::write(below.join("file"), "below").expect("write");
    let mut spec = engine.shell("cat /a/below/file");
    spec.mounts = vec![bind(engine.path("source"), "/a", true)];
    let (status, log) = engine.run(&spec).await;
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).expect("unmount");
    assert_eq!((status.code, log.as_str()), (0, "below"));
    engine.close().await;
}

async fn a_path_may_hold_colons_spaces_and_commas(engine: TestEngine) {
    fs::create_dir(engine.path("a: b,c")).expect("folder");
    fs::write(engine.path("a: b,c/file"), "text").expect("write");
    let mut spec = engine.shell("cat '/x y/z:ro,w/file'");
    spec.mounts = vec![bind(engine.path("a: b,c"), "/x y/z:ro,w", true)];
    assert_eq!(engine.output_of(&spec).await, "text");
    engine.close().await;
}

async fn a_tmpfs_has_its_size_and_may_hold_programs(engine: TestEngine) {
    let mut spec = engine.shell("df -k /scratch | tail -n 1; df -k /dev/shm | tail -n 1; cp /bin/busybox /scratch/echo && /scratch/echo runs");
    spec.mounts = vec![tmpfs(8 << 20, false)];
    spec.limits.shm_bytes = Some(16 << 20);
    let log = engine.output_of(&spec).await;
    let sizes: Vec<_> = log
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(sizes, ["8192", "16384"], "{log}");
    assert!(log.ends_with("\nruns\n"), "{log}");
    engine.close().await;
}

async fn a_read_only_tmpfs_cannot_be_written(engine: TestEngine) {
    let mut spec = engine.shell("touch /scratch/x 2>&1; true");
    spec.mounts = vec![tmpfs(1 << 20, true)];
    let log = engine.output_of(&spec).await;
    assert!(log.contains("Read-only file system"), "{log}");
    engine.close().await;
}

async fn a_mount_of_the_container_is_none_of_the_hosts(engine: TestEngine) {
    fs::create_dir(engine.path("shown")).expect("folder");
    let mut spec = engine.shell("sleep 1000");
    spec.mounts = vec![
        bind(engine.path("shown"), "/shown", false),
        tmpfs(1 << 20, false),
    ];
    let id = engine.launch(&spec).await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let shown = engine.path("shown").display().to_string();
    assert!(
        !mounts.contains(&shown) && !mounts.contains("/scratch "),
        "{mounts}"
    );
    engine.runtime.remove(&id).await.expect("remove");
    engine.close().await;
}
