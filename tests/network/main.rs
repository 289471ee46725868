//! The network of engines without one of their own, looked at from outside: each test has network namespaces of its own
//! for "the host" and for everything beside it, so the machine's rules are never touched.
#![allow(clippy::unwrap_used, reason = "tests")]

mod user;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use backendai_agent::runtime::PortBinding;
use backendai_agent::runtime::network::{Attachment, Network, NetworkConfig, NetworkError};
use backendai_agent::sys::netns;

/// Runs a test as "the host": a thread in a network namespace of its own, with loopback up and a run directory.
fn on_host(test: impl AsyncFnOnce(&Path) + Send) {
    thread::scope(|scope| {
        let run = move || {
            netns::enter_new().unwrap();
            sh("ip link set lo up");
            let folder = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test(folder.path()));
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(
                !mounts.contains(folder.path().to_str().unwrap()),
                "a mount is left"
            );
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn open(run: &Path) -> Network {
    Network::open(run, NetworkConfig::default()).unwrap()
}

fn binding(host: u16, container: u16) -> PortBinding {
    PortBinding { host, container }
}

/// A server in a namespace that greets its callers with `greeting`, three times at most.
fn serve(netns: PathBuf, port: u16, greeting: &'static str) {
    let (ready, wait) = mpsc::channel();
    thread::spawn(move || {
        netns::enter(&netns).unwrap();
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming().take(3) {
            let _ = stream.unwrap().write_all(greeting.as_bytes());
        }
    });
    wait.recv_timeout(Duration::from_secs(5)).unwrap();
}

/// What the server at this address says, or nothing when it is not to be reached.
fn ask(address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(3)) {
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let _ = stream.read_to_string(&mut text);
    }
    text
}

fn ask_from(netns: PathBuf, address: &'static str) -> String {
    let caller = thread::spawn(move || {
        netns::enter(&netns).unwrap();
        ask(address)
    });
    caller.join().unwrap()
}

/// A second machine at 192.0.2.2, reached through the host's 192.0.2.1; its namespace's file.
fn outside(run: &Path) -> PathBuf {
    let path = run.join("outside");
    let made = path.clone();
    thread::spawn(move || netns::create(&made).unwrap())
        .join()
        .unwrap();
    let enter = format!("nsenter --net={}", path.display());
    sh(&format!(
        "ip link add up0 type veth peer name out0
         ip link set out0 netns {path}
         ip addr add 192.0.2.1/24 dev up0; ip link set up0 up
         {enter} ip addr add 192.0.2.2/24 dev out0; {enter} ip link set out0 up; {enter} ip link set lo up",
        path = path.display()
    ));
    path
}

fn assert_nothing_left(run: &Path) {
    assert_eq!(sh("nft list tables"), "");
    assert!(!sh("ip -o link").contains("bv"), "a veth pair is left");
    assert!(!sh("ip -o link").contains("bai"), "the bridge is left");
    assert_eq!(std::fs::read_dir(run.join("netns")).unwrap().count(), 0);
}

#[test]
fn a_port_is_reached_from_loopback_from_the_host_and_from_outside() {
    on_host(async |run| {
        let network = open(run);
        let outside = outside(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "hello");
        assert_eq!(ask("127.0.0.1:30000"), "hello");
        assert_eq!(ask("192.0.2.1:30000"), "hello");
        assert_eq!(ask_from(outside.clone(), "192.0.2.1:30000"), "hello");
        network.detach("one").await.unwrap();
        assert_eq!(ask("127.0.0.1:30000"), "");
        assert_nothing_left(run);
        netns::remove(&outside).unwrap();
    });
}

#[test]
fn a_container_reaches_the_outside_with_the_hosts_address() {
    on_host(async |run| {
        let network = open(run);
        let outside = outside(run);
        let at = network.attach("one", &[]).await.unwrap();
        serve(outside.clone(), 80, "outside");
        // The outside has no route to the containers' subnet: only a translated address is answered.
        assert_eq!(ask_from(at.netns.clone(), "192.0.2.2:80"), "outside");
        network.detach("one").await.unwrap();
        netns::remove(&outside).unwrap();
    });
}

#[test]
fn containers_have_addresses_of_their_own_and_reach_each_other() {
    on_host(async |run| {
        let network = open(run);
        let ports = [binding(30000, 2000)];
        let (one, two) = tokio::join!(network.attach("one", &ports), network.attach("two", &[]));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_ne!(one.address, two.address);
        serve(one.netns.clone(), 2000, "neighbour");
        let address: &'static str = format!("{}:2000", one.address).leak();
        assert_eq!(ask_from(two.netns.clone(), address), "neighbour");
        // By the forwarded port of the bridge's address too.
        let address: &'static str = format!("{}:30000", one.gateway).leak();
        assert_eq!(ask_from(two.netns.clone(), address), "neighbour");
        network.detach("one").await.unwrap();
        assert_eq!(network.attachments().await.unwrap().len(), 1);
        network.detach("two").await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn a_host_port_is_forwarded_once_and_a_refused_attach_leaves_nothing() {
    on_host(async |run| {
        let network = open(run);
        network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        let refused = network
            .attach("two", &[binding(30001, 1), binding(30000, 1)])
            .await;
        assert!(
            matches!(refused, Err(NetworkError::PortTaken { port: 30000, .. })),
            "{refused:?}"
        );
        assert_eq!(network.attachments().await.unwrap().len(), 1);
        network.detach("one").await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn an_attach_that_fails_half_way_leaves_nothing() {
    on_host(async |run| {
        let network = open(run);
        // Something is in the way of the namespace's file: the bridge is there by then.
        std::fs::write(run.join("netns/one"), "").unwrap();
        assert!(
            network
                .attach("one", &[binding(30000, 2000)])
                .await
                .is_err()
        );
        assert_eq!(network.attachments().await.unwrap(), []);
        assert_nothing_left(run);
        network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        network.detach("one").await.unwrap();
    });
}

#[test]
fn rules_that_were_flushed_come_back() {
    on_host(async |run| {
        let network = open(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "back");
        sh("nft flush ruleset");
        assert_eq!(ask("127.0.0.1:30000"), "");
        network.ensure().await.unwrap();
        assert_eq!(ask("127.0.0.1:30000"), "back");
        network.detach("one").await.unwrap();
        network.ensure().await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn a_dropping_forward_policy_does_not_cut_containers_off_and_is_left_as_it_was() {
    on_host(async |run| {
        sh(
            "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
        );
        let before = sh("nft list ruleset");
        let network = open(run);
        let outside = outside(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "through");
        serve(outside.clone(), 80, "outside");
        assert_eq!(ask_from(outside.clone(), "192.0.2.1:30000"), "through");
        assert_eq!(ask_from(at.netns.clone(), "192.0.2.2:80"), "outside");
        network.detach("one").await.unwrap();
        assert_eq!(sh("nft list ruleset"), before);
        netns::remove(&outside).unwrap();
    });
}

#[test]
fn a_later_agent_finds_the_connections_and_takes_them_away() {
    on_host(async |run| {
        let at: Attachment = open(run)
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        let later = open(run);
        assert_eq!(later.attachments().await.unwrap(), [("one".to_owned(), at)]);
        later.detach("one").await.unwrap();
        later.detach("one").await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn subnets_that_the_host_uses_are_left_alone() {
    on_host(async |run| {
        // Every candidate but 172.27/16 is routed elsewhere.
        sh("ip link add d0 type bridge; ip link set d0 up
            for net in 172.30.0.0/16 172.29.0.0/16 172.28.0.0/16 10.0.0.0/8; do ip route add $net dev d0; done");
        let network = open(run);
        let at = network.attach("one", &[]).await.unwrap();
        assert!(
            at.address.to_string().starts_with("172.27."),
            "{}",
            at.address
        );
        network.detach("one").await.unwrap();
    });
}

#[test]
fn a_second_attach_of_a_container_is_refused_and_leaves_the_first_alone() {
    on_host(async |run| {
        let network = open(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        let refused = network.attach("one", &[]).await;
        assert!(matches!(refused, Err(NetworkError::Connected(_))));
        serve(at.netns.clone(), 2000, "still");
        assert_eq!(ask("127.0.0.1:30000"), "still");
        for id in ["", "../one", "."] {
            let refused = network.attach(id, &[]).await;
            assert!(matches!(refused, Err(NetworkError::InvalidId(_))), "{id:?}");
        }
        network.teardown().await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn an_address_that_is_used_again_is_reached_at_once() {
    on_host(async |run| {
        let network = open(run);
        network.attach("stays", &[]).await.unwrap();
        let first = network
            .attach("first", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(first.netns.clone(), 2000, "first");
        assert_eq!(ask("127.0.0.1:30000"), "first");
        let neighbours = sh("ip neighbour");
        network.detach("first").await.unwrap();
        let second = network
            .attach("second", &[binding(30000, 2000)])
            .await
            .unwrap();
        assert_eq!(first.address, second.address);
        let enter = format!("nsenter --net={}", second.netns.display());
        let known = neighbours
            .lines()
            .find(|line| line.starts_with(&format!("{} ", first.address)))
            .unwrap();
        let hardware = known.split_whitespace().nth(4).unwrap();
        let link = sh(&format!("{enter} ip -o link show eth0"));
        assert!(link.contains(hardware), "{link} {known}");
        serve(second.netns.clone(), 2000, "second");
        assert_eq!(ask("127.0.0.1:30000"), "second");
        network.teardown().await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn single_rules_that_were_lost_come_back_and_whole_tables_are_not_touched() {
    on_host(async |run| {
        let network = open(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        network
            .attach("two", &[binding(30001, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "back");
        // Handles tell a table from a later one of the same text.
        let before = sh("nft -a list ruleset");
        network.ensure().await.unwrap();
        assert_eq!(sh("nft -a list ruleset"), before);
        let table = sh("nft list tables").trim().replace("table ", "");
        sh(&format!("nft delete element {table} ports '{{ 30000 }}'"));
        assert_eq!(ask("127.0.0.1:30000"), "");
        network.ensure().await.unwrap();
        assert_eq!(ask("127.0.0.1:30000"), "back");
        sh(&format!("nft flush chain {table} output"));
        assert_eq!(ask("127.0.0.1:30000"), "");
        network.ensure().await.unwrap();
        assert_eq!(ask("127.0.0.1:30000"), "back");
        network.teardown().await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn a_packet_filter_that_comes_later_and_goes_earlier_cuts_nobody_off() {
    on_host(async |run| {
        let network = open(run);
        let outside = outside(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "through");
        // As iptables makes them for dockerd.
        sh("iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN
            iptables-nft -N DOCKER; iptables-nft -A DOCKER -d 10.9.9.9 ! -i d0 -p tcp -m tcp --dport 80 -m addrtype --dst-type LOCAL -j ACCEPT
            iptables-nft -I FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP");
        assert_eq!(ask_from(outside.clone(), "192.0.2.1:30000"), "");
        network.ensure().await.unwrap();
        assert_eq!(ask_from(outside.clone(), "192.0.2.1:30000"), "through");
        let rules = sh("nft list ruleset");
        network.ensure().await.unwrap();
        assert_eq!(sh("nft list ruleset"), rules, "a rule is there twice");
        // The reason for the rule goes; the rule must nevertheless.
        sh("iptables-nft -P FORWARD ACCEPT");
        network.detach("one").await.unwrap();
        let left = sh("nft list ruleset");
        assert!(!left.contains("backendai"), "{left}");
        netns::remove(&outside).unwrap();
    });
}

#[test]
fn from_outside_only_forwarded_ports_are_reached() {
    on_host(async |run| {
        let network = open(run);
        let outside = outside(run);
        let at = network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        serve(at.netns.clone(), 2000, "inside");
        let enter = format!("nsenter --net={}", outside.display());
        sh(&format!(
            "{enter} ip route add {}/32 via 192.0.2.1",
            at.address
        ));
        let direct: &'static str = format!("{}:2000", at.address).leak();
        assert_eq!(ask(direct), "inside");
        assert_eq!(ask_from(outside.clone(), "192.0.2.1:30000"), "inside");
        assert_eq!(ask_from(outside.clone(), direct), "");
        network.detach("one").await.unwrap();
        netns::remove(&outside).unwrap();
    });
}

#[test]
fn a_container_does_not_reach_services_on_the_hosts_loopback() {
    on_host(async |run| {
        let network = open(run);
        let at = network.attach("one", &[]).await.unwrap();
        let listener = TcpListener::bind("127.0.0.5:9000").unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(1) {
                let _ = stream.unwrap().write_all(b"secret");
            }
        });
        // A container that does all it can to send there.
        let enter = format!("nsenter --net={}", at.netns.display());
        sh(&format!(
            "{enter} sh -c 'for f in all eth0; do echo 1 > /proc/sys/net/ipv4/conf/$f/route_localnet; done'
             {enter} ip route flush table local match 127.0.0.0/8
             {enter} ip route add 127.0.0.5/32 via {} src {}",
            at.gateway, at.address
        ));
        assert_eq!(ask_from(at.netns.clone(), "127.0.0.5:9000"), "");
        // It is the guard that stops it.
        let table = sh("nft list tables").trim().replace("table ", "");
        sh(&format!("nft flush chain {table} guard"));
        assert_eq!(ask_from(at.netns.clone(), "127.0.0.5:9000"), "secret");
        network.detach("one").await.unwrap();
    });
}

#[test]
fn containers_that_come_and_go_at_once_are_all_reached_and_leave_nothing() {
    on_host(async |run| {
        // Two agents' processes on one run directory.
        let networks = [open(run), open(run)];
        for _ in 0..2 {
            let attaching = (0..24_u16).map(|n| {
                let (network, id) = (&networks[usize::from(n % 2)], format!("c{n}"));
                async move { network.attach(&id, &[binding(30000 + n, 2000)]).await }
            });
            let all: Vec<Attachment> = futures_util::future::try_join_all(attaching).await.unwrap();
            let mut addresses: Vec<_> = all.iter().map(|at| at.address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            assert_eq!(addresses.len(), 24, "an address was given twice");
            let greetings: Vec<&'static str> = (0..24)
                .map(|n| &*Box::leak(format!("hello {n}").into_boxed_str()))
                .collect();
            for (at, greeting) in all.iter().zip(&greetings) {
                serve(at.netns.clone(), 2000, greeting);
            }
            for (n, greeting) in greetings.iter().enumerate() {
                assert_eq!(ask(&format!("127.0.0.1:{}", 30000 + n)), *greeting);
            }
            let detaching = (0..24_u16).map(|n| {
                let network = &networks[usize::from((n + 1) % 2)];
                async move { network.detach(&format!("c{n}")).await }
            });
            futures_util::future::try_join_all(detaching).await.unwrap();
            assert_nothing_left(run);
        }
    });
}

#[test]
fn the_last_that_goes_leaves_the_bridge_to_the_one_that_comes() {
    on_host(async |run| {
        let network = open(run);
        network.attach("c0", &[binding(30000, 2000)]).await.unwrap();
        for n in 1..16_u16 {
            let (before, id) = (format!("c{}", n - 1), format!("c{n}"));
            let ports = [binding(30000 + n, 2000)];
            let (gone, come) = tokio::join!(network.detach(&before), network.attach(&id, &ports));
            gone.unwrap();
            serve(come.unwrap().netns, 2000, "hello");
            assert_eq!(ask(&format!("127.0.0.1:{}", 30000 + n)), "hello");
            assert_eq!(ask(&format!("127.0.0.1:{}", 30000 + n - 1)), "");
        }
        network.detach("c15").await.unwrap();
        assert_nothing_left(run);
    });
}

#[test]
fn ports_are_added_to_a_table_that_is_right_without_replacing_it() {
    on_host(async |run| {
        let network = open(run);
        let handle = || {
            let ruleset = sh("nft -a list ruleset");
            let table = ruleset.lines().next().unwrap().to_owned();
            assert!(table.contains("handle"), "{table}");
            table
        };
        network
            .attach("one", &[binding(30000, 2000)])
            .await
            .unwrap();
        let first = handle();
        let two = network
            .attach("two", &[binding(30001, 2000)])
            .await
            .unwrap();
        network.detach("one").await.unwrap();
        assert_eq!(handle(), first, "the table was replaced");
        serve(two.netns, 2000, "hello");
        assert_eq!(ask("127.0.0.1:30001"), "hello");
        assert_eq!(ask("127.0.0.1:30000"), "");
        network.detach("two").await.unwrap();
        assert_nothing_left(run);
    });
}
