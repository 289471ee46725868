//! The operator's commands while a kernel runs.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemons::sleeps;
use crate::program::{Outcome, Run};
use crate::support::Node;

impl Node {
    /// Another command of the program, on the same folders.
    fn operate(&self, args: &[&str]) -> Outcome {
        Run::start(&mut self.operation(args)).end()
    }

    fn operation(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
        // What comes after -- is not ours.
        let end = args.iter().position(|arg| *arg == "--");
        let (ours, theirs) = args.split_at(end.unwrap_or(args.len()));
        command.args(ours);
        self.settle(&mut command);
        command.args(theirs);
        command
    }

    /// The one of the listed kernels that this node has seen: a daemon lists those of other tests too.
    fn own<'a>(&self, listed: &'a Value) -> &'a Value {
        let seen = self.kernels();
        let all = listed.as_array().expect("a list");
        let ours = |it: &&Value| seen.contains(it["kernel_id"].as_str().unwrap_or_default());
        all.iter().find(ours).expect("the kernel is listed")
    }

    fn operate_json(&self, args: &[&str]) -> Value {
        let outcome = self.operate(args);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        serde_json::from_str(&outcome.out).expect("JSON")
    }
}

#[test]
fn a_running_kernel_is_listed_inspected_and_entered() {
    let node = Node::busybox();
    let mut run = node.start(&["--mem", "64m", "--exec", "echo up; sleep 1000"]);
    assert_eq!(run.line(), "up\n");
    let listed = node.operate_json(&["ps", "--json"]);
    let kernel = node.own(&listed);
    let container = kernel["container_id"].as_str().expect("an id");
    if !node.is_docker() {
        assert!(node.ids().contains(container));
    }
    assert_eq!(kernel["state"], "running");
    assert_eq!(kernel["slots"]["mem"], "67108864");
    assert!(kernel["pid"].as_i64().expect("a pid") > 0 && kernel["address"].is_string());
    assert!(kernel["started_at"].as_u64().expect("a time") > 1_700_000_000);
    let id = kernel["kernel_id"].as_str().expect("an id");
    let table = node.operate(&["ps"]).out;
    for word in [&id[..12], &container[..12], "running", "mem=64m", "busybox"] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let inspected = node.operate_json(&["inspect", &container[..12]]);
    assert_eq!(inspected["kernel_id"], kernel["kernel_id"]);
    assert!(inspected["cgroup"].is_string() && inspected["scratch"].is_string());

    let script = "echo $A $(id -u) $(pwd); echo trouble >&2; exit 7";
    let user = [
        "--user",
        "9001",
        "--workdir",
        "/home/work",
        "--env",
        "A=b c",
    ];
    let mut args = vec!["exec", &id[..8]];
    args.extend(user);
    args.extend(["--", "sh", "-c", script]);
    let outcome = node.operate(&args);
    assert_eq!(outcome.out, "b c 9001 /home/work\n");
    assert_eq!((outcome.code, outcome.err.as_str()), (7, "trouble\n"));
    let mark = format!("1003.{}", std::process::id());
    let late = ["exec", id, "--timeout", "1", "--", "sleep", &mark];
    let outcome = node.operate(&late);
    assert_eq!(outcome.code, 1, "{}", outcome.err);
    // What was killed may take its time to go.
    assert!(comes(|| !sleeps(&mark)));
    let mark = format!("1005.{}", std::process::id());
    let entered = Run::start(&mut node.operation(&["exec", id, "--", "sleep", &mark]));
    assert!(comes(|| sleeps(&mark)));
    entered.signal(Signal::INT);
    assert_eq!(entered.end().code, 130);
    assert!(comes(|| !sleeps(&mark)));
    run.signal(Signal::INT);
    assert_eq!(run.end().code, 130);
    node.assert_nothing_left();
}

/// Whether something comes true within some seconds.
fn comes(is_true: impl Fn() -> bool) -> bool {
    (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        is_true()
    })
}

#[test]
fn a_log_is_followed_until_its_kernel_is_gone() {
    let node = Node::busybox();
    let mut run = node.start(&["--exec", "echo up; sleep 1000"]);
    assert_eq!(run.line(), "up\n");
    let listed = node.operate_json(&["ps", "--json"]);
    let kernel = node.own(&listed);
    let id = kernel["kernel_id"].as_str().expect("an id");
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command.args(["logs", "-f", "--tail", "0", id]);
    node.settle(&mut command);
    let mut follow = Run::start(&mut command);
    // The first process's standard output is the container's log.
    let output = format!("/proc/{}/fd/1", kernel["pid"]);
    let say = |text: &str| std::fs::write(&output, text).expect("written");
    // Whatever is there before the first look is not followed, so it is said until it is.
    let waiting = std::thread::spawn(move || {
        let line = follow.line();
        (follow, line)
    });
    while !waiting.is_finished() {
        say("one\n");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let (mut follow, mut line) = waiting.join().expect("read");
    say("two\n");
    while line == "one\n" {
        line = follow.line();
    }
    assert_eq!(line, "two\n");
    let whole = node.operate(&["logs", id]).out;
    assert!(whole.ends_with("one\ntwo\n"), "{whole}");
    assert_eq!(node.operate(&["logs", "--tail", "1", id]).out, "two\n");
    run.signal(Signal::INT);
    assert_eq!(run.end().code, 130);
    let outcome = follow.end();
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, ""),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}

#[test]
fn the_doctor_finds_the_engine_well_and_counts_its_kernels_ports_as_ours() {
    let node = Node::busybox();
    let mut run = node.start(&["--exec", "echo up; sleep 1000"]);
    assert_eq!(run.line(), "up\n");
    let listed = node.operate_json(&["ps", "--json"]);
    let ports = node.own(&listed)["ports"]
        .as_array()
        .expect("ports")
        .clone();
    let port = ports[0]["host"].as_u64().expect("a port");
    // Of these ports the kernel has some, and other runs may have others.
    let range = format!("{port}-{}", port + 99);
    let scratch = node.folder("scratches").display().to_string();
    let args = ["doctor", "--json", "--scratch-root", &scratch];
    let report = node.operate_json(&[&args[..], &["--container-port-range", &range]].concat());
    let checks = report["checks"].as_array().expect("checks");
    let check = |name: &str| checks.iter().find(|it| it["check"] == name).expect("there");
    let engine = format!("engine-{}", report["engine"].as_str().expect("a name"));
    assert_eq!(check(&engine)["status"], "ok");
    assert_eq!(report["ok"], true, "{report}");
    let taken = check("host-ports")["detail"]
        .as_str()
        .expect("text")
        .to_owned();
    assert!(!taken.contains(&format!("({port}")), "{taken}");
    run.signal(Signal::INT);
    assert_eq!(run.end().code, 130);
    node.assert_nothing_left();
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let node = Node::busybox();
    for args in [
        &["inspect", "nobody"][..],
        &["logs", "nobody"],
        &["exec", "nobody", "--", "true"],
    ] {
        let outcome = node.operate(args);
        assert_eq!((outcome.code, outcome.out.as_str()), (1, ""), "{args:?}");
        assert!(outcome.err.contains("nobody"), "{}", outcome.err);
    }
    assert_eq!(node.operate(&["exec", "nobody"]).code, 2, "no program");
}
