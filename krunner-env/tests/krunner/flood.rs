//! Output without end: memory stays bounded, producers wait, nothing is lost, ops are still served.

use std::time::Duration;

use crate::support::{Kernel, plain_python, shell};

fn peak_memory_kib(kernel: &Kernel) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", kernel.pid())).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("a line");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// Waits until the runner's memory no longer grows.
fn wait_for_the_gate(kernel: &Kernel) {
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = peak_memory_kib(kernel);
        if now == last {
            return;
        }
        last = now;
    }
}

#[test]
fn a_slow_agent_gets_every_byte_of_a_flood_in_order_and_memory_stays_bounded() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "seq 1 8000000");
    wait_for_the_gate(&kernel);
    let run = agent.recv_until("finished");
    assert_eq!(run.code(), 0);
    let mut expected: u32 = 0;
    for line in run
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        expected += 1;
        assert_eq!(
            std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.parse().ok()),
            Some(expected)
        );
    }
    assert_eq!(expected, 8_000_000);
    assert!(
        peak_memory_kib(&kernel) < 40 << 10,
        "{} KiB",
        peak_memory_kib(&kernel)
    );
}

#[test]
fn a_batch_flood_that_nobody_reads_can_be_interrupted() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "yes");
    wait_for_the_gate(&kernel);
    agent.send("interrupt", "");
    assert_eq!(agent.recv_until("finished").code(), -2);
    assert!(
        peak_memory_kib(&kernel) < 40 << 10,
        "{} KiB",
        peak_memory_kib(&kernel)
    );
    assert_eq!(agent.exec("echo alive").out(), "alive\n");
}

#[test]
fn a_query_flood_that_nobody_reads_can_be_interrupted_and_frames_stay_whole() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    for code in [
        "while True: print('y' * 70)",
        "text = 'y' * 1000000\nwhile True: print(text)",
    ] {
        agent.send("code", code);
        wait_for_the_gate(&kernel);
        agent.send("interrupt", "");
        let run = agent.recv_until("finished");
        assert!(run.err().contains("KeyboardInterrupt"), "{}", run.err());
        assert!(run.stdout.iter().all(|byte| matches!(byte, b'y' | b'\n')));
        assert_eq!(agent.query("'alive'").out(), "'alive'");
    }
    assert!(
        peak_memory_kib(&kernel) < 40 << 10,
        "{} KiB",
        peak_memory_kib(&kernel)
    );
}

#[test]
fn a_flood_of_a_background_process_does_not_hold_up_the_end_of_a_query() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    let run = agent.query("import subprocess\nflood = subprocess.Popen(['yes'])\nprint('started')");
    assert_eq!(run.code(), 0);
    let run = agent.query("flood.kill(); _ = flood.wait()");
    assert_eq!(run.code(), 0);
}
