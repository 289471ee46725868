//! Two hundred kernels come and go, four at a time: everything that can be counted on the machine is as it was before.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backendai_agent::agent::request::KernelConfig;

use crate::daemons::{self, Kind};
use crate::engines::on_own;
use crate::node::{TestNode, slots};

/// Kernels in all.
const CYCLES: usize = 200;
/// Kernels at a time.
const WORKERS: usize = 4;

async fn two_hundred_kernels_leave_nothing(node: TestNode) {
    // Connections and folders that are made once and kept are there before the count.
    cycles(&node, WORKERS).await;
    let before = settled(&node, None).await;
    let ids = cycles(&node, CYCLES).await;
    let after = settled(&node, Some(&before)).await;
    assert_eq!(beyond(&after, &before), Census::new());
    let left: Vec<_> = ids.iter().flat_map(|id| cgroups(id)).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    node.close().await;
}

/// Creates and destroys kernels; gives their containers.
async fn cycles(node: &TestNode, count: usize) -> Vec<String> {
    let workers = (0..WORKERS).map(|worker| async move {
        let mut ids = Vec::new();
        for cycle in 0..count / WORKERS {
            let name = format!("k{worker}-{cycle}");
            let config = KernelConfig {
                slots: slots("0", 32 << 20),
                ..node.config()
            };
            let created = node.try_create(&name, config).await.expect("created");
            node.destroy(&name).await;
            ids.push(created.container);
        }
        ids
    });
    let ids = futures_util::future::join_all(workers).await;
    ids.into_iter().flatten().collect()
}

/// Counts until two counts are the same, or there is no more than was: an engine tidies up in its own time.
async fn settled(node: &TestNode, wanted: Option<&Census>) -> Census {
    let mut last = census(node);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = census(node);
        if wanted.map_or(now == last, |wanted| beyond(&now, wanted).is_empty()) {
            return now;
        }
        last = now;
    }
    last
}

/// What there is, by kind.
type Census = BTreeMap<&'static str, Vec<String>>;

/// What there is now and was not before; an engine may have been tidying up still when that was counted.
fn beyond(now: &Census, before: &Census) -> Census {
    let new = |(kind, all): (&&'static str, &Vec<String>)| {
        let new = all.iter().filter(|it| !before[kind].contains(it)).cloned();
        (*kind, new.collect::<Vec<_>>())
    };
    now.iter()
        .map(new)
        .filter(|(_, new)| !new.is_empty())
        .collect()
}

fn census(node: &TestNode) -> Census {
    let folders = node.folders();
    [
        ("mounts", mounts(&folders)),
        (
            "links",
            lines(&["ip", "-o", "link"], |line| {
                line.split(':').nth(1).map(|name| name.trim().to_owned())
            }),
        ),
        ("rules", rules()),
        ("ports", listening()),
        ("descriptors", descriptors()),
        ("processes", processes(&folders)),
        (
            "files",
            folders.iter().flat_map(|folder| files(folder)).collect(),
        ),
    ]
    .into()
}

fn mounts(folders: &[PathBuf]) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| folders.iter().any(|it| Path::new(point).starts_with(it)));
    ours.map(str::to_owned).collect()
}

fn lines(command: &[&str], pick: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.expect("the program is installed").stdout;
    let mut all: Vec<_> = String::from_utf8_lossy(&output)
        .lines()
        .filter_map(pick)
        .collect();
    all.sort();
    all
}

/// The rules of this network namespace, without what they have counted.
fn rules() -> Vec<String> {
    lines(&["nft", "list", "ruleset"], |line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let plain = words
            .iter()
            .filter(|word| word.parse::<u64>().is_err())
            .copied();
        Some(plain.collect::<Vec<_>>().join(" "))
    })
}

/// Ports of this network namespace where someone listens.
fn listening() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").expect("tcp");
    let fields = text.lines().map(|line| line.split_whitespace().collect());
    let listens = fields.filter(|fields: &Vec<&str>| fields.get(3) == Some(&"0A"));
    let mut ports: Vec<_> = listens.map(|fields| fields[1].to_owned()).collect();
    ports.sort();
    ports
}

/// Descriptors of this process, which is the agent's: an entry for each, so that more of them are seen.
fn descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").expect("fds").count();
    (0..open).map(|it| it.to_string()).collect()
}

/// Programs that work in the folders, by name: those of an engine's daemon stay, those of containers do not.
fn processes(folders: &[PathBuf]) -> Vec<String> {
    let marks: Vec<_> = folders.iter().map(|it| it.display().to_string()).collect();
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let command = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        marks.iter().any(|mark| line.contains(mark)).then_some(line)
    };
    let mut all: Vec<_> = entries.filter_map(command).collect();
    all.sort();
    all
}

/// Files and folders that containers have: the engine's own books grow and shrink within files, and dockerd removes the empty
/// files of its network namespaces once a minute; those that are in use are mounts, which are counted.
fn files(folder: &Path) -> Vec<String> {
    let places = [
        "run/containers",
        "run/netns",
        "run/network/records",
        "state/containers",
        "scratch",
        "data/containers",
        "data/overlay2",
        "data/image/overlay2/layerdb/mounts",
        "exec/runtime-runc/moby",
        "root/io.containerd.snapshotter.v1.overlayfs/snapshots",
        "state/io.containerd.runtime.v2.task/backendai",
        "root/io.containerd.runtime.v2.task/backendai",
    ];
    let mut all = Vec::new();
    for place in places {
        for entry in fs::read_dir(folder.join(place)).into_iter().flatten() {
            all.push(entry.expect("entry").path().display().to_string());
        }
    }
    all.sort();
    all
}

/// Cgroups whose name holds a container's id.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(id) {
                found.push(entry.path());
            } else if depth < 4 {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

mod youki {
    #[tokio::test]
    async fn two_hundred_kernels_leave_nothing() {
        super::daemons::own_network();
        let node = super::TestNode::youki().await;
        super::two_hundred_kernels_leave_nothing(node).await;
    }
}

mod containerd {
    #[tokio::test]
    async fn two_hundred_kernels_leave_nothing() {
        if let Some(node) = super::on_own(super::Kind::Containerd, &[]).await {
            super::two_hundred_kernels_leave_nothing(node).await;
        }
    }
}

mod docker {
    #[tokio::test]
    async fn two_hundred_kernels_leave_nothing() {
        if let Some(node) = super::on_own(super::Kind::Docker, &[]).await {
            super::two_hundred_kernels_leave_nothing(node).await;
        }
    }
}
