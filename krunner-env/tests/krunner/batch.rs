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
    agent.expect_stdout("begun\n");
    let run = agent.interrupt_command();
    assert_eq!((run.out(), run.code()), ("", -2));
}

#[test]
fn a_missing_program_is_127_and_a_killed_one_minus_9() {
    let kernel = shell();
    let mut agent = kernel.agent();
    assert_eq!(agent.exec("no-such-program-anywhere").code(), 127);
    assert_eq!(agent.exec("kill -9 $$").code(), -9);
}

#[test]
fn a_star_runs_the_main_file_of_the_language() {
    let builder = Builder::new("python", Some("/usr/bin/python3"));
    std::fs::write(
        builder.work().join("main.py"),
        "import os\nprint('main', os.getcwd())\n",
    )
    .expect("a file");
    let kernel = builder.start();
    let mut agent = kernel.agent();
    let run = agent.exec("*");
    let work = kernel.work().canonicalize().expect("a folder");
    assert_eq!(
        (run.out(), run.code()),
        (format!("main {}\n", work.display()).as_str(), 0)
    );
}

#[test]
fn a_star_without_a_main_file_is_127_and_says_what_it_wants() {
    let kernel = Builder::new("python", Some("/usr/bin/python3")).start();
    let mut agent = kernel.agent();
    let run = agent.exec("*");
    assert_eq!(run.code(), 127);
    assert!(run.err().contains("main.py"), "{}", run.err());
}

#[test]
fn commands_see_environ_txt_and_the_container_s_variables() {
    let builder = Builder::new("app", None)
        .env("FROM_IMAGE", "image")
        .env("BOTH", "image");
    let kernel = builder
        .file("config/environ.txt", "BOTH=session\nWITH=a=b c\n")
        .start();
    let mut agent = kernel.agent();
    let run = agent.exec("echo \"$FROM_IMAGE $BOTH $WITH $_BACKEND_BATCH_MODE\"; echo $HOME");
    assert_eq!(
        run.out(),
        format!("image session a=b c 1\n{}\n", kernel.work().display())
    );
}

#[test]
fn standard_input_is_empty() {
    let kernel = shell();
    let mut agent = kernel.agent();
    assert_eq!(agent.exec("cat; echo end").out(), "end\n");
}

#[test]
fn a_child_that_keeps_the_pipe_open_delays_the_end_record() {
    let kernel = shell();
    let mut agent = kernel.agent();
    let run = agent.exec("(sleep 0.2; echo late) & echo early; exit 5");
    assert_eq!((run.out(), run.code()), ("early\nlate\n", 5));
}

#[test]
fn output_is_copied_to_the_container_s_log() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let kernel = Builder::new("app", None)
        .log(log.reopen().expect("a file").into())
        .start();
    let mut agent = kernel.agent();
    agent.exec("echo to the log >&2");
    let text = std::fs::read_to_string(log.path()).expect("text");
    assert!(text.contains("to the log\n"), "{text}");
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let kernel = Builder::new("app", None).log(writer.into()).start();
    let mut agent = kernel.agent();
    let run = agent.exec("head -c 1000000 /dev/zero >&2");
    assert_eq!((run.stderr.len(), run.code()), (1_000_000, 0));
    drop(reader);
    assert_eq!(agent.exec("echo still there >&2").err(), "still there\n");
}

#[test]
fn output_that_is_not_text_arrives_as_it_is() {
    let kernel = shell();
    let mut agent = kernel.agent();
    assert_eq!(agent.exec(r"printf '\377\000\303'").stdout, b"\xff\0\xc3");
}

#[test]
fn a_stopped_runner_takes_its_programs_along() {
    let mut kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "trap '' TERM; echo $$; while :; do sleep 1; done");
    let (_, pid) = agent.recv();
    let pid = String::from_utf8(pid).expect("text");
    assert_eq!(kernel.stop(libc::SIGTERM), Some(0));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::path::Path::new(&format!("/proc/{}/exe", pid.trim())).exists() {
        assert!(std::time::Instant::now() < deadline, "the program lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
