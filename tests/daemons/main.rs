//! The daemons of the tests themselves: they serve, obey, and leave nothing.

#[path = "mod.rs"]
mod daemons;

use std::fs;
use std::path::PathBuf;

use daemons::{Kind, OwnDaemon};

fn start(kind: Kind) -> Option<OwnDaemon> {
    match OwnDaemon::start(kind, &[]) {
        Ok(daemon) => Some(daemon),
        Err(lack) => {
            println!("skipped: {lack}");
            None
        }
    }
}

fn obeys_and_leaves_nothing(kind: Kind) {
    let Some(mut daemon) = start(kind) else {
        return;
    };
    let serves = |daemon: &OwnDaemon| daemons::serves(kind, &daemon.socket());
    assert!(serves(&daemon));
    daemon.freeze();
    assert!(daemon.is_frozen());
    daemon.thaw();
    assert!(!daemon.is_frozen());
    daemon.kill();
    assert!(!serves(&daemon));
    daemon.start_again();
    assert!(serves(&daemon));
    daemon.restart();
    assert!(serves(&daemon));
    let folder: PathBuf = daemon.folder().to_owned();
    drop(daemon);
    assert!(!folder.exists() && !folder.with_extension("log").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&*folder.to_string_lossy()), "{mounts}");
}

#[test]
fn dockerd_obeys_and_leaves_nothing() {
    obeys_and_leaves_nothing(Kind::Docker);
}

#[test]
fn containerd_obeys_and_leaves_nothing() {
    obeys_and_leaves_nothing(Kind::Containerd);
}
