//! Kernels that do their worst: nothing but themselves comes to harm.

use std::fs;
use std::io::{Read, Write};

use crate::support::Node;

#[test]
fn a_flood_of_output_passes_without_being_held_in_memory() {
    let node = Node::busybox();
    let wanted: u64 = 200 << 20;
    let flood = format!("head -c {wanted} /dev/zero | tr '\\0' x; cat /home/work/gate > /dev/null");
    let mut run = node.start(&[
        "--build",
        "mkfifo /home/work/gate || mknod /home/work/gate p",
        "--exec",
        &flood,
    ]);
    let mut got = 0_u64;
    let mut part = vec![0; 1 << 20];
    while got < wanted {
        let length = run.out.read(&mut part).expect("read");
        assert!(length > 0, "the output ended after {got} bytes");
        got += length as u64;
    }
    let pid = run.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let high: u64 = high
        .expect("a peak")
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    assert!(high < 100 << 10, "{high} kB");
    run.signal(rustix::process::Signal::INT);
    assert_eq!(run.end().code, 130);
    node.assert_nothing_left();
}

#[test]
fn a_kernel_that_kills_everything_ends_only_itself() {
    let node = Node::python();
    let mut neighbour = node.start(&["-c", "print('up')\nprint(input())"]);
    assert_eq!(neighbour.line(), "up\n");
    let code =
        "import os, time\nif os.fork() == 0:\n  os.kill(-1, 9)\n  os._exit(0)\ntime.sleep(1000)";
    let outcome = node.run(&["-c", code]);
    // dockerd puts a first process of its own before the runner, which is therefore killed too.
    let (wanted, word) = if node.is_docker() {
        (1, "ended before the code")
    } else {
        (137, "has ended")
    };
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (wanted, ""),
        "{}",
        outcome.err
    );
    assert!(outcome.err.contains(word), "{}", outcome.err);
    neighbour.say("still here\n");
    let outcome = neighbour.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "still here\n"));
    node.assert_nothing_left();
}

#[test]
fn a_fork_bomb_is_bounded_and_goes_with_its_kernel() {
    let node = Node::busybox();
    // Out of memory, Linux takes one of the bomb and not who waits for it.
    let bomb = "echo up; f() { f | f & }; (echo 1000 > /proc/self/oom_score_adj; f); sleep 1000";
    let mut run = node.start(&["--mem", "256m", "--exec", bomb]);
    assert_eq!(run.line(), "up\n");
    let outcome = node.run(&["--exec", "echo neighbour"]);
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "neighbour\n"));
    run.signal(rustix::process::Signal::TERM);
    let outcome = run.end();
    assert_eq!(outcome.code, 143, "{}", outcome.err);
    node.assert_nothing_left();
}

#[test]
fn a_kernel_that_takes_too_much_memory_is_told_and_gone() {
    let node = Node::python();
    let outcome = node.run(&[
        "--mem",
        "256m",
        "-c",
        "print('up')\nx = bytearray(1 << 30)\nprint(len(x))",
    ]);
    assert_ne!(outcome.code, 0);
    assert_eq!(outcome.out, "up\n");
    assert!(outcome.err.contains("backendai-agent: "), "{}", outcome.err);
    node.assert_nothing_left();
}

/// Each is smaller than the runner, which Linux would take first.
#[test]
fn many_small_programs_that_take_the_memory_leave_the_runner() {
    let node = Node::busybox();
    // A shell that becomes another one keeps no list of its children, and so stays small.
    let one_more =
        "sleep 1000 > /dev/null 2>&1 & [ $1 = 2000 ] && exit 42; exec sh more $(($1 + 1))";
    let many = format!("echo '{one_more}' > more; exec sh more 1");
    let outcome = node.run(&["--mem", "64m", "--exec", &many]);
    // The shell itself may be the one that Linux takes.
    assert!([42, 137].contains(&outcome.code), "{}", outcome.err);
    assert!(
        outcome.err.contains("out of its memory of 64m"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}

#[test]
fn a_flood_that_nobody_reads_ends_the_run() {
    let node = Node::busybox();
    let mut run = node.start(&["--exec", "yes"]);
    assert_eq!(run.line(), "y\n");
    // Whoever reads goes away, as `head` does.
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    writer.write_all(b"x").expect("written");
    drop(writer);
    let nobody: std::process::ChildStdout = std::os::fd::OwnedFd::from(reader).into();
    drop(std::mem::replace(
        &mut run.out,
        std::io::BufReader::new(nobody),
    ));
    assert_ne!(run.end().code, 0);
    node.assert_nothing_left();
}

#[test]
fn a_program_that_wants_too_much_memory_is_killed_and_the_run_says_why() {
    let node = Node::busybox();
    let hog = "dd if=/dev/zero of=/dev/null bs=300M count=1";
    let outcome = node.run(&["--mem", "64m", "--exec", hog]);
    assert_ne!(outcome.code, 0);
    assert!(
        outcome.err.contains("out of its memory of 64m"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}
