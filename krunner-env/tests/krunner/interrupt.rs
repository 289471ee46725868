//! Interrupts of queries.

use crate::python::each;
use crate::support::{plain_python, shell};

#[test]
fn an_interrupt_ends_a_query_that_sleeps_and_one_that_computes() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    for code in [
        "import time\nprint('begun')\nwhile True: time.sleep(0.1)",
        "print('begun')\nwhile True: pass",
    ] {
        agent.send("code", code);
        agent.expect_stdout("begun\n");
        agent.send("interrupt", "");
        let run = agent.recv_until("finished");
        assert!(run.err().contains("KeyboardInterrupt"), "{}", run.err());
        assert_eq!(run.code(), 1);
    }
    assert_eq!(agent.query("'alive'").out(), "'alive'");
}

#[test]
fn an_interrupt_between_runs_hits_nobody() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.query("kept = 1");
    for _ in 0..20 {
        agent.send("interrupt", "");
        let run = agent.query("kept");
        // The interrupt is handled before the code is: it came first.
        assert_eq!((run.out(), run.code()), ("1", 0));
    }
}

#[test]
fn an_interrupt_that_comes_before_the_interpreter_is_up_is_not_lost() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", "import time\ntime.sleep(1000)");
    agent.send("interrupt", "");
    assert_eq!(agent.recv_until("finished").code(), 1);
}

#[test]
fn an_interrupt_reaches_the_programs_that_a_query_has_started() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send(
        "code",
        "import subprocess\nprint('begun')\nsubprocess.call('sleep 1000; sleep 1000', shell=True)",
    );
    agent.expect_stdout("begun\n");
    agent.send("interrupt", "");
    assert_eq!(agent.recv_until("finished").code(), 1);
}

#[test]
fn user_code_may_catch_an_interrupt() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    agent.send("code", "import time\ntry:\n    print('begun')\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    print('caught')");
    agent.expect_stdout("begun\n");
    agent.send("interrupt", "");
    let run = agent.recv_until("finished");
    assert_eq!((run.out(), run.code()), ("caught\n", 0));
}

/// C code that goes from one system call into the next: the interrupt ends the first, and the interpreter cannot notice it
/// before the second.
#[test]
fn an_interrupt_that_comes_just_before_a_system_call_ends_it_all_the_same() {
    each(|agent, _| {
        agent.send("code", "import ctypes, sys\nlibc = ctypes.CDLL(None)\nsys.stdout.write('begun')\nlibc.qsort(ctypes.create_string_buffer(4), 3, 1, libc.pause)");
        agent.expect_stdout("begun");
        agent.send("interrupt", "");
        let run = agent.recv_until("finished");
        assert!(run.err().contains("KeyboardInterrupt"), "{}", run.err());
    });
}

/// The nudges after an interrupt are not for code that has caught it: under Python 2 they would end its system calls.
#[test]
fn code_that_catches_an_interrupt_is_left_alone_after_it() {
    each(|agent, _| {
        agent.send("code", "import select, sys, time\ntry:\n    sys.stdout.write('begun')\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    _ = select.select([], [], [], 1)\n    sys.stdout.write(' ended')");
        agent.expect_stdout("begun");
        agent.send("interrupt", "");
        let run = agent.recv_until("finished");
        assert_eq!((run.out(), run.err(), run.code()), (" ended", "", 0));
    });
}

#[test]
fn only_the_current_run_is_interrupted() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "echo begun; sleep 1000");
    agent.send("exec", "echo next");
    agent.expect_stdout("begun\n");
    assert_eq!(agent.interrupt_command().code(), -2);
    assert_eq!(agent.recv_until("finished").out(), "next\n");
}
