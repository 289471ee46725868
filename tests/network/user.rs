//! The network of an ordinary user's agent: a way out and ports without privileges.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backendai_agent::runtime::network::{Network, NetworkConfig, NetworkError, Outer};
use backendai_agent::sys::netns;

use super::{binding, on_host, sh};

/// What listens on ports in place of the program of `monitor/`: for containers `slow…` it is never ready, for `fails…` it says
/// why not, and it ends with the test.
const LISTENER: &str = r#"#!/bin/sh
echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" > "$2"
echo begun
case ${2##*/} in
  slow*) exec sleep 1000;;
  fails*) echo no such port; exit 1;;
esac
echo ready
exec sleep 1000 > /dev/null
"#;

/// A network as an ordinary user's agent has it, whose programs that listen are [`LISTENER`]s.
fn open_for_a_user(run: &Path) -> Network {
    let folder = run.join("namespaces");
    std::fs::create_dir(&folder).unwrap();
    // The way out is there: this process.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let began = fields.split_whitespace().nth(19).unwrap();
    let way_out = format!("{} {began}", std::process::id());
    std::fs::write(folder.join("way-out"), way_out).unwrap();
    let program = run.join("listener");
    std::fs::write(&program, LISTENER).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let config = NetworkConfig {
        outer: Some(Outer::new(folder, program)),
        ..NetworkConfig::default()
    };
    Network::open(run, config).unwrap()
}

fn listener(run: &Path, id: &str) -> PathBuf {
    run.join("network").join(format!("{id}.listener"))
}

/// Waits until the program that listens for a container has begun; gives its pid.
async fn until_begun(run: &Path, id: &str) -> String {
    loop {
        let text = std::fs::read_to_string(listener(run, id)).unwrap_or_default();
        if let Some((pid, _)) = text.split_once(' ') {
            return pid.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_nothing_left_of_a_user(run: &Path) {
    let locks = ["bridge", "lock", "rules"];
    let left: Vec<_> = std::fs::read_dir(run.join("network"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !locks.contains(&name.as_str()))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(run.join("netns")).unwrap().count(), 0);
    netns::remove(&run.join("namespaces/net")).unwrap();
}

#[test]
fn a_users_container_whose_ports_are_not_ready_keeps_no_other_waiting() {
    on_host(async |run| {
        let network = open_for_a_user(run);
        let mut slow = tokio::task::JoinSet::new();
        let other = network.clone();
        slow.spawn(async move { other.attach("slow", &[binding(31001, 2000)]).await });
        let pid = until_begun(run, "slow").await;
        // Others come and go meanwhile, and what is looked after is no matter of theirs.
        network.attach("b", &[binding(31002, 2000)]).await.unwrap();
        let taken = network.attach("c", &[binding(31001, 2000)]).await;
        assert!(matches!(taken, Err(NetworkError::PortTaken { .. })));
        network.ensure().await.unwrap();
        network.detach("b").await.unwrap();
        assert!(slow.try_join_next().is_none());
        // It leaves before it is there: the program ends, and so does whoever waits for it.
        network.detach("slow").await.unwrap();
        let error = slow.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, NetworkError::Listener { .. }), "{error}");
        while Path::new("/proc").join(&pid).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        network.attach("c", &[binding(31001, 2000)]).await.unwrap();
        network.detach("c").await.unwrap();
        assert_nothing_left_of_a_user(run);
    });
}

#[test]
fn a_users_container_whose_ports_cannot_be_listened_on_gives_everything_back() {
    on_host(async |run| {
        let network = open_for_a_user(run);
        let error = network.attach("fails", &[binding(31001, 2000)]).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no such port"), "{error}");
        assert_eq!(network.attachments().await.unwrap(), []);
        network.attach("b", &[binding(31001, 2000)]).await.unwrap();
        network.detach("b").await.unwrap();
        assert_nothing_left_of_a_user(run);
    });
}

#[test]
fn who_looks_after_a_users_containers_begins_what_has_ended_and_nothing_twice() {
    on_host(async |run| {
        let network = open_for_a_user(run);
        network.attach("a", &[binding(31001, 2000)]).await.unwrap();
        let first = until_begun(run, "a").await;
        network.ensure().await.unwrap();
        assert_eq!(until_begun(run, "a").await, first);
        sh(&format!("kill {first}"));
        while Path::new("/proc").join(&first).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        network.ensure().await.unwrap();
        assert_ne!(until_begun(run, "a").await, first);
        network.detach("a").await.unwrap();
        assert_nothing_left_of_a_user(run);
    });
}
