//! User input: of queries, and of batch programs in any language.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;

use crate::support::{Builder, binary, plain_python, shell};

#[test]
fn input_in_a_query_asks_and_goes_on_with_the_answer() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", r#"name = input("your name? "); print("hi", name)"#);
    let asked = agent.recv_until("waiting-input");
    assert_eq!(
        (asked.out(), asked.end.as_str()),
        ("your name? ", r#"{"is_password": false}"#)
    );
    agent.send("input", "Jo\u{e9}");
    let run = agent.recv_until("finished");
    assert_eq!((run.out(), run.code()), ("hi Jo\u{e9}\n", 0));
}

#[test]
fn getpass_asks_for_a_password() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", "import getpass; len(getpass.getpass())");
    let asked = agent.recv_until("waiting-input");
    assert_eq!(
        (asked.out(), asked.end.as_str()),
        ("Password: ", r#"{"is_password": true}"#)
    );
    agent.send("input", "secret");
    assert_eq!(agent.recv_until("finished").out(), "6");
}

#[test]
fn standard_input_of_a_query_asks_too() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", "import sys; sys.stdin.readline()");
    agent.recv_until("waiting-input");
    agent.send("input", "line");
    assert_eq!(agent.recv_until("finished").out(), r"'line\n'");
}

#[test]
fn an_answer_may_come_before_the_question() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send(
        "code",
        "import time\nprint('begun'); time.sleep(0.2); input() + input()",
    );
    agent.expect_stdout("begun\n");
    agent.send("input", "a");
    agent.send("input", "b");
    assert!(agent.recv_until("finished").out().ends_with("'ab'"));
    // But not before the run.
    agent.send("input", "stale");
    agent.send("code", "input()");
    agent.recv_until("waiting-input");
    agent.send("input", "fresh");
    assert_eq!(agent.recv_until("finished").out(), "'fresh'");
}

#[test]
fn an_interrupt_ends_a_question() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", "input('? ')");
    agent.recv_until("waiting-input");
    agent.send("interrupt", "");
    let run = agent.recv_until("finished");
    assert!(run.err().contains("KeyboardInterrupt"), "{}", run.err());
    assert_eq!(agent.query("'next'").out(), "'next'");
}

#[test]
fn input_in_a_python_batch_program_asks_after_its_prompt() {
    let builder = Builder::new("python", Some("/usr/bin/python3")).env("PYTHONPATH", "/somewhere");
    let program =
        "import sys\nprint('main', input('q: '), input())\nprint('/somewhere' in sys.path)\n";
    let kernel = builder.file("work/main.py", program).start();
    let mut agent = kernel.agent();
    agent.send("exec", "*");
    let asked = agent.recv_until("waiting-input");
    assert_eq!((asked.out(), asked.end.as_str()), ("q: ", ""));
    let long = "A".repeat(5000);
    agent.send("input", &long);
    agent.recv_until("waiting-input");
    agent.send("input", "B");
    let run = agent.recv_until("finished");
    assert_eq!(
        (run.out(), run.code()),
        (format!("main {long} B\nTrue\n").as_str(), 0)
    );
}

#[test]
fn raw_input_in_a_python_2_batch_program_asks() {
    let Some(python) = crate::python::pythons()
        .into_iter()
        .find(|path| path.ends_with("2.7.18/bin/python"))
    else {
        eprintln!("skipped: no Python 2.7 in ~/.pyenv/versions");
        return;
    };
    let builder = Builder::new("python", python.to_str());
    let kernel = builder
        .file("work/main.py", "print(raw_input('q: '))\n")
        .start();
    let mut agent = kernel.agent();
    agent.send("exec", "*");
    assert_eq!(agent.recv_until("waiting-input").out(), "q: ");
    agent.send("input", "two");
    assert_eq!(agent.recv_until("finished").out(), "two\n");
}

#[test]
fn the_krunner_input_command_asks_for_any_language() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send(
        "exec",
        &format!(
            "answer=$('{}' input); echo \"got $answer\"",
            binary().display()
        ),
    );
    assert_eq!(agent.recv_until("waiting-input").end, "");
    agent.send("input", "a line");
    assert_eq!(agent.recv_until("finished").out(), "got a line\n");
}

#[test]
fn the_user_s_own_sitecustomize_is_run_too() {
    let builder = Builder::new("python", Some("/usr/bin/python3"));
    let mine = builder.work();
    let kernel = builder
        .env("PYTHONPATH", mine.to_str().expect("text"))
        .file(
            "work/sitecustomize.py",
            "import builtins\nbuiltins.mine = 'mine'\n",
        )
        .file("work/main.py", "print(mine)\n")
        .start();
    assert_eq!(kernel.agent().exec("*").out(), "mine\n");
}

#[test]
fn programs_that_ask_together_are_answered_in_turn_over_both_sockets() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "echo begun; sleep 1000");
    agent.expect_stdout("begun\n");
    let mut tcp =
        TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.input)).expect("it listens");
    agent.recv_until("waiting-input");
    let mut unix =
        UnixStream::connect(kernel.dir.path().join("tmp/input.sock")).expect("it listens");
    let (mut first, mut second) = (String::new(), String::new());
    agent.send("input", "one");
    tcp.read_to_string(&mut first).expect("text");
    agent.recv_until("waiting-input");
    agent.send("input", "two");
    unix.read_to_string(&mut second).expect("text");
    assert_eq!((first.as_str(), second.as_str()), ("one", "two"));
    assert_eq!(agent.interrupt_command().code(), -2);
}

#[test]
fn a_program_that_stops_asking_leaves_the_line_to_the_next() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "echo begun; sleep 1000");
    agent.expect_stdout("begun\n");
    let gone = TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.input)).expect("it listens");
    agent.recv_until("waiting-input");
    drop(gone);
    let mut stays =
        TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.input)).expect("it listens");
    agent.recv_until("waiting-input");
    agent.send("input", "line");
    let mut answer = String::new();
    stays.read_to_string(&mut answer).expect("text");
    assert_eq!(answer, "line");
    agent.interrupt_command();
}

#[test]
fn who_asks_while_nothing_runs_is_told_so() {
    let kernel = shell();
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, kernel.ports.input)).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    assert_eq!(answer, "<user-input is unsupported>");
}
