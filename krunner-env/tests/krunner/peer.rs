//! Agents that go away and come back, and strangers on the ports.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::support::{Agent, shell};

#[test]
fn records_wait_for_an_agent_that_is_away() {
    let kernel = shell();
    let mut agent = kernel.agent();
    assert_eq!(agent.exec("echo first").out(), "first\n");
    agent.send("exec", "echo second");
    agent.send("exec", "sleep 0.3; echo third");
    assert_eq!(agent.recv_until("finished").out(), "second\n");
    drop(agent);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(kernel.agent().recv_until("finished").out(), "third\n");
}

#[test]
fn ops_and_records_pass_before_anybody_reads() {
    let kernel = shell();
    let mut first = kernel.agent();
    first.send("exec", "echo early");
    assert_eq!(first.recv_until("finished").out(), "early\n");
}

#[test]
fn the_newest_agent_gets_the_records() {
    let kernel = shell();
    let mut old = kernel.agent();
    assert_eq!(old.exec("echo old").out(), "old\n");
    let mut new = kernel.agent();
    for _ in 0..5 {
        assert_eq!(new.exec("echo new").out(), "new\n");
    }
}

#[test]
fn strangers_and_silent_connections_disturb_nobody() {
    let kernel = shell();
    let mut agent = kernel.agent();
    let silent: Vec<_> = (0..10)
        .map(|_| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.replout)).expect("it listens")
        })
        .collect();
    for port in [kernel.ports.replin, kernel.ports.replout] {
        let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("it is read");
    }
    assert_eq!(agent.exec("echo fine").out(), "fine\n");
    drop(silent);
}

#[test]
fn more_connections_than_allowed_are_refused_and_the_agent_stays() {
    let kernel = shell();
    let mut agent = kernel.agent();
    // It stands among those that are allowed before the others come.
    assert_eq!(agent.exec("echo first").out(), "first\n");
    let many: Vec<_> = (0..200)
        .map(|_| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.replin)).expect("it listens")
        })
        .collect();
    assert_eq!(agent.exec("echo fine").out(), "fine\n");
    drop(many);
    assert_eq!(
        Agent::connect(kernel.ports).exec("echo again").out(),
        "again\n"
    );
}

#[test]
fn records_are_still_written_when_the_runner_is_stopped() {
    let mut kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "head -c 8000000 /dev/zero");
    // Its end record is queued when it has been reaped.
    let children = format!("/proc/{0}/task/{0}/children", kernel.pid());
    while !std::fs::read_to_string(&children)
        .expect("it runs")
        .is_empty()
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    let reader = std::thread::spawn(move || agent.recv_until("finished").stdout.len());
    assert_eq!(kernel.stop(libc::SIGTERM), Some(0));
    assert_eq!(reader.join().expect("all records came"), 8_000_000);
}
