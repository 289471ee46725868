//! The daemon dies, freezes, restarts: containers live on, calls fail by their limits and say so, all is found again.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use backendai_agent::backends::EngineConfig;
use backendai_agent::runtime::{ContainerState, Mount, MountKind, NetworkMode};

use crate::away::{Wait, assert_nothing_answers, in_time};
use crate::daemons::sleeps;
use crate::node::{Node, exec_spec};

/// A container that goes on when the file `go/name` is there.
fn waiting(node: &Node, then: &str) -> backendai_agent::runtime::ContainerSpec {
    let go = node.dir.path().join("go");
    fs::create_dir_all(&go).expect("a folder");
    let script = format!("echo here; while ! [ -e /go/now ]; do sleep 0.02; done; {then}");
    let mut spec = node.shell(&script);
    spec.network = NetworkMode::Bridge;
    spec.mounts = vec![Mount {
        kind: MountKind::Bind(go),
        target: "/go".into(),
        read_only: true,
    }];
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_a_daemon_that_is_killed_and_a_wait_goes_on() {
    let Some(mut node) = Node::new().await else {
        return;
    };
    let id = node.launch(&waiting(&node, "echo bye; exit 11")).await;
    let before = node.runtime.list().await.expect("list");
    let wait = Wait::begin(&node, &id);
    node.daemon.kill();
    assert_nothing_answers(&node, &id).await;
    node.daemon.start_again();
    assert_eq!(node.runtime.list().await.expect("list"), before);
    assert_eq!(before[0].state, ContainerState::Running);
    let output = node.runtime.exec(&id, &exec_spec(&["echo", "alive"])).await;
    assert_eq!(output.expect("exec").stdout, b"alive\n");
    fs::write(node.dir.path().join("go/now"), "").expect("a file");
    assert_eq!(wait.end().await.code, 11);
    let log = node.runtime.logs(&id, 100).await.expect("logs");
    assert_eq!(log, b"here\nbye\n");
    // What was seen once is known for ever, whatever the daemon forgets.
    node.daemon.restart();
    assert_eq!(node.runtime.wait(&id).await.expect("wait").code, 11);
    let info = node.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(info.exit.map(|exit| exit.code), Some(11));
    node.runtime.remove(&id).await.expect("remove");
    assert_eq!(node.runtime.list().await.expect("list"), []);
    assert_nothing_left(&node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ends_while_the_daemon_is_away_has_stopped_when_it_is_back() {
    let Some(mut node) = Node::new().await else {
        return;
    };
    let id = node.launch(&waiting(&node, "exit 11")).await;
    let pid = node.runtime.inspect(&id).await.expect("inspect").pid;
    node.daemon.kill();
    fs::write(node.dir.path().join("go/now"), "").expect("a file");
    let process = format!("/proc/{}", pid.expect("it runs"));
    let ended = async {
        while fs::exists(&process).expect("proc") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(ended).await;
    node.daemon.start_again();
    // containerd forgets the codes of those that it finds dead; that it has ended is what counts.
    let end = in_time(node.runtime.wait(&id)).await.expect("wait");
    assert!([11, 137].contains(&end.code), "{end:?}");
    let info = node.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(
        (info.state, info.exit),
        (ContainerState::Stopped, Some(end))
    );
    node.runtime.remove(&id).await.expect("remove");
    assert_nothing_left(&node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_daemon_is_told_and_answers_when_it_goes_on() {
    let Some(node) = Node::new().await else {
        return;
    };
    let id = node.launch(&waiting(&node, "exit 12")).await;
    let wait = Wait::begin(&node, &id);
    node.daemon.freeze();
    assert_nothing_answers(&node, &id).await;
    node.daemon.thaw();
    let found = async {
        while node.runtime.list().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time(found).await;
    fs::write(node.dir.path().join("go/now"), "").expect("a file");
    // The signal that was asked for while it was frozen may have come through after all.
    let code = wait.end().await.code;
    assert!([12, 137].contains(&code), "{code}");
    node.runtime.remove(&id).await.expect("remove");
    assert_eq!(node.runtime.list().await.expect("list"), []);
    assert_nothing_left(&node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_is_killed_takes_its_container_along_and_wait_says_so() {
    let Some(node) = Node::new().await else {
        return;
    };
    let id = node.launch(&node.shell("sleep 1000")).await;
    let shims = fs::read_dir("/proc").expect("proc").flatten();
    let shim = shims.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let ours = line.contains("containerd-shim") && line.contains(&id.0);
        ours.then(|| entry.file_name().into_string().expect("text"))
    });
    let shim: Vec<_> = shim.collect();
    let killed = std::process::Command::new("/bin/busybox")
        .args(["kill", "-9"])
        .args(&shim)
        .status();
    assert!(!shim.is_empty() && killed.expect("kill").success());
    for _ in 0..2 {
        let end = in_time(node.runtime.wait(&id)).await.expect("wait");
        assert_eq!(end.code, 137);
    }
    let info = node.runtime.inspect(&id).await.expect("inspect");
    assert_eq!((info.state, info.pid), (ContainerState::Stopped, None));
    node.runtime.remove(&id).await.expect("remove");
    assert_nothing_left(&node);
}

/// No snapshot, mount, cgroup, folder or namespace of any container.
fn assert_nothing_left(node: &Node) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let dir = node.dir.path().display().to_string();
    for mark in [&dir, &node.daemon.folder().display().to_string()] {
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(mark)).collect();
        assert_eq!(left, Vec::<&str>::new());
    }
    for folder in [
        "state/containerd/containers",
        "run/network/records",
        "run/netns",
    ] {
        let entries = fs::read_dir(node.dir.path().join(folder))
            .into_iter()
            .flatten();
        let left: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
    let snapshots = node.ctr(&["snapshots", "ls"]);
    let active = snapshots
        .lines()
        .filter(|line| line.trim_end().ends_with("Active"));
    assert_eq!(active.count(), 0, "{snapshots}");
    assert_eq!(node.ctr(&["tasks", "ls", "-q"]), "");
    assert_eq!(node.ctr(&["containers", "ls", "-q"]), "");
}

/// containerd loses a removal that comes while it deletes the folders of an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_containerd_misses_leaves_no_snapshot() {
    let Some(node) = Node::new().await else {
        return;
    };
    let before = snapshots(&node);
    miss_a_removal(&node).await;
    let gone = async {
        while !snapshots(&node).is_subset(&before) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time(gone).await;
    miss_a_removal(&node).await;
    // As an agent does that ends.
    node.runtime.settle().await;
    assert_eq!(snapshots(&node).difference(&before).next(), None);
    assert_nothing_left(&node);
}

/// Removes a container with many files, and one more while containerd deletes those.
async fn miss_a_removal(node: &Node) {
    let before = snapshots(node);
    let large = node.launch(&node.shell("true")).await;
    let folder = snapshots(node).difference(&before).next().cloned();
    let folder = folder.expect("a snapshot").join("fs/many");
    for part in 0..10 {
        let part = folder.join(part.to_string());
        fs::create_dir_all(&part).expect("a folder");
        for file in 0..1000 {
            fs::write(part.join(file.to_string()), "").expect("a file");
        }
    }
    let small = node.launch(&node.shell("true")).await;
    for id in [&large, &small] {
        in_time(node.runtime.wait(id)).await.expect("wait");
    }
    node.runtime.remove(&large).await.expect("remove");
    let begun = async {
        while fs::read_dir(&folder).is_ok_and(|all| all.count() == 10) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    in_time(begun).await;
    node.runtime.remove(&small).await.expect("remove");
}

/// The folders of containerd's snapshots.
fn snapshots(node: &Node) -> BTreeSet<PathBuf> {
    let place = "root/io.containerd.snapshotter.v1.overlayfs/snapshots";
    let all = fs::read_dir(node.daemon.folder().join(place)).expect("a folder");
    all.map(|entry| entry.expect("entry").path()).collect()
}

/// A handler that takes long to start programs in containers: the time of such a program is over before it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_starts_after_its_time_is_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let (handler, started) = (folder.path().join("slow"), folder.path().join("started"));
    let script = format!(
        "#!/bin/sh\nfor word; do [ \"$word\" != exec ] || slow=yes; done\n\
         [ -z \"$slow\" ] || sleep 1\nrunc \"$@\"; code=$?\n\
         [ -z \"$slow\" ] || touch {}\nexit $code\n",
        started.display()
    );
    fs::write(&handler, script).expect("a file");
    fs::set_permissions(&handler, Permissions::from_mode(0o755)).expect("our file");
    let slow = |config: &mut EngineConfig| config.handler = Some(handler.display().to_string());
    let Some(node) = Node::with(slow).await else {
        return;
    };
    let id = node.launch(&node.shell("sleep 1000")).await;
    let mark = format!("1002.{}", std::process::id());
    let mut program = exec_spec(&["sleep", &mark]);
    program.time_limit = Duration::from_millis(100);
    let error = node.runtime.exec(&id, &program).await;
    assert!(error.expect_err("too long").to_string().contains("100ms"));
    let ended = async {
        while !started.exists() || sleeps(&mark) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(ended).await;
    node.runtime.remove(&id).await.expect("remove");
    assert_nothing_left(&node);
}
