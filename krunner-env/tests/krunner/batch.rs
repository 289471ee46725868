//! Batch mode: commands, exit codes, order, interrupt, user input.

use std::time::Duration;

use crate::support::{Builder, shell};

fn kinds_and_bodies(agent: &mut crate::support::Agent, count: usize) -> Vec<(String, String)> {
    let text = |(kind, body): (String, Vec<u8>)| (kind, String::from_utf8(body).expect("text"));
    (0..count).map(|_| text(agent.recv())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(kind, body)| ((*kind).to_owned(), (*body).to_owned()))
        .collect()
}

#[test]
fn a_batch_run_gives_output_and_three_end_records_in_order() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("clean", "");
    agent.send("build", "echo building");
    agent.send("exec", "echo running; exit 3");
    let expected = pairs(&[
        ("clean-finished", r#"{"exitCode": 0}"#),
        ("stdout", "building\n"),
        ("build-finished", r#"{"exitCode": 0}"#),
        ("stdout", "running\n"),
        ("finished", r#"{"exitCode": 3}"#),
    ]);
    assert_eq!(kinds_and_bodies(&mut agent, 5), expected);
}

#[test]
fn a_failed_build_skips_one_exec() {
    let kernel = shell();
    let mut agent = kernel.agent();
    for (op, command) in [
        ("clean", "false"),
        ("build", "exit 2"),
        ("exec", "echo never"),
        ("exec", "echo again"),
    ] {
        agent.send(op, command);
    }
    let expected = pairs(&[
        ("clean-finished", r#"{"exitCode": 1}"#),
        ("build-finished", r#"{"exitCode": 2}"#),
        ("finished", r#"{"exitCode": 127}"#),
        ("stdout", "again\n"),
        ("finished", r#"{"exitCode": 0}"#),
    ]);
    assert_eq!(kinds_and_bodies(&mut agent, 5), expected);
}

#[test]
fn an_interrupt_ends_a_batch_command_and_its_children() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "echo begun; sleep 1000; echo never");
    assert_eq!(agent.recv(), ("stdout".to_owned(), b"begun\n".to_vec()));
    agent.send("interrupt", "");
    let run = agent.recv_until("finished");
    assert_eq!((run.out(), run.code()), ("", -2));
}

#[test]
fn a_missing_program_is_127_and_a_killed_one_minus_9() {
    let kernel = shell();
    let mut agent = kernel.agent();
    assert_eq!(agent.exec("no-such-program-anywhere").code(), 127);
    assert_eq!(agent.exec("kill -9 $$").code(), -9);
}
