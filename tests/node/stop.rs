//! Interrupts, signals and time limits.

use rustix::process::Signal;

use crate::support::Node;

// An interrupt may come as soon as `up` is seen, so it is printed where an interrupt is minded.
const DEAF: &str = "import time\nup = False\nwhile True:\n  try:\n    if not up:\n      up = True\n      print('up')\n    time.sleep(100)\n  except KeyboardInterrupt:\n    print('not me')";

#[test]
fn the_interrupt_key_interrupts_the_code() {
    let node = Node::python();
    let code = "import time\ntry:\n  print('up')\n  time.sleep(1000)\nexcept KeyboardInterrupt:\n  print('interrupted')\n  raise SystemExit(9)";
    let mut run = node.start_on_terminal(&["-c", code]);
    run.until("up");
    run.type_in("\x03");
    run.until("interrupted");
    assert_eq!(run.end().0, 9);
    node.assert_nothing_left();
}

#[test]
fn code_that_does_not_mind_an_interrupt_ends_with_a_trace() {
    let node = Node::python();
    let mut run = node.start_on_terminal(&["-c", "print('up')\nwhile True: pass"]);
    run.until("up");
    run.type_in("\x03");
    run.until("KeyboardInterrupt");
    assert_eq!(run.end().0, 130);
    node.assert_nothing_left();
}

#[test]
fn an_interrupt_ends_a_wait_for_input() {
    let node = Node::python();
    let mut run = node.start_on_terminal(&["-c", "input('who? ')"]);
    run.until("who? ");
    run.type_in("\x03");
    run.until("KeyboardInterrupt");
    assert_eq!(run.end().0, 130);
    node.assert_nothing_left();
}

#[test]
fn a_second_interrupt_ends_the_kernel() {
    let node = Node::python();
    let mut run = node.start_on_terminal(&["-c", DEAF]);
    run.until("up");
    run.type_in("\x03");
    run.until("not me");
    run.type_in("\x03");
    assert_eq!(run.end().0, 130);
    node.assert_nothing_left();
}

#[test]
fn an_interrupt_ends_a_command() {
    let node = Node::busybox();
    let mut run = node.start(&["--exec", "echo up; exec sleep 1000"]);
    assert_eq!(run.line(), "up\n");
    run.signal(Signal::INT);
    assert_eq!(run.end().code, 130);
    node.assert_nothing_left();
}

#[test]
fn a_termination_or_a_lost_terminal_ends_the_kernel() {
    let node = Node::python();
    for signal in [Signal::TERM, Signal::HUP] {
        let mut run = node.start(&["-c", DEAF]);
        assert_eq!(run.line(), "up\n");
        run.signal(signal);
        assert_eq!(run.end().code, 143);
        node.assert_nothing_left();
    }
}

#[test]
fn the_time_limit_ends_the_kernel() {
    let node = Node::python();
    let outcome = node.run(&["--timeout", "3", "-c", DEAF]);
    assert_eq!((outcome.code, outcome.out.as_str()), (124, "up\n"));
    node.assert_nothing_left();
}
