//! Code, files and commands: output as it comes, and the exit status.

use std::fs;

use crate::support::Node;

#[test]
fn output_appears_while_the_code_still_runs() {
    let node = Node::python();
    let gate = node.folder("gate");
    let code = "import os, sys, time\nprint('first')\nprint('err', file=sys.stderr)\n\
                while not os.path.exists('gate/open'): time.sleep(0.01)\nprint('second')";
    let mount = format!("{}:gate:ro", gate.display());
    let mut run = node.start(&["--mount", &mount, "-c", code]);
    assert_eq!(run.line(), "first\n");
    fs::write(gate.join("open"), "").expect("written");
    let outcome = run.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "second\n"));
    assert!(outcome.err.contains("err\n"), "{}", outcome.err);
    node.assert_nothing_left();
}

#[test]
fn the_exit_status_is_the_codes() {
    let node = Node::python();
    for (code, expected) in [
        ("raise SystemExit(7)", 7),
        ("raise ValueError('no')", 1),
        ("import sys; sys.exit()", 0),
        ("def f(:", 1),
    ] {
        let outcome = node.run(&["-c", code]);
        assert_eq!(outcome.code, expected, "{code}: {}", outcome.err);
        if code.contains("ValueError") {
            assert!(outcome.err.contains("ValueError: no"), "{}", outcome.err);
        }
    }
    node.assert_nothing_left();
}

#[test]
fn the_exit_status_of_a_command_is_the_runs() {
    let node = Node::busybox();
    for (command, expected) in [("exit 3", 3), ("kill -9 $$", 137), ("true", 0)] {
        let outcome = node.run(&["--exec", command]);
        assert_eq!(outcome.code, expected, "{command}: {}", outcome.err);
    }
    node.assert_nothing_left();
}

#[test]
fn a_build_that_fails_keeps_the_command_from_running() {
    let node = Node::busybox();
    let outcome = node.run(&["--build", "echo built; exit 4", "--exec", "echo run"]);
    assert_eq!((outcome.code, outcome.out.as_str()), (4, "built\n"));
    node.assert_nothing_left();
}

#[test]
fn files_are_copied_and_the_first_is_run() {
    let node = Node::python();
    let folder = node.folder("files");
    let (main, other) = (folder.join("it's main.py"), folder.join("data.txt"));
    fs::write(&main, "print(open('data.txt').read())\nraise SystemExit(5)").expect("written");
    fs::write(&other, "from a file").expect("written");
    let [main, other] = [main, other].map(|path| path.display().to_string());
    let outcome = node.run(&[&main, &other]);
    assert_eq!((outcome.code, outcome.out.as_str()), (5, "from a file\n"));
    node.assert_nothing_left();
}

#[test]
fn without_code_the_standard_input_is_the_code() {
    let node = Node::python();
    let mut run = node.start(&[]);
    run.say("print(6 * 7)\n");
    let outcome = run.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "42\n"));
    node.assert_nothing_left();
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let node = Node::python();
    let mut long = node.start(&["-c", "print('up')\nprint('got', input())"]);
    assert_eq!(long.line(), "up\n");
    assert_eq!(node.output("print('short')"), "short\n");
    long.say("on\n");
    let outcome = long.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "got on\n"));
    node.assert_nothing_left();
}

#[test]
fn nothing_but_the_codes_output_is_on_standard_output_and_quiet_is_quiet() {
    let node = Node::python();
    let outcome = node.run(&["-c", "print('x')"]);
    assert_eq!(outcome.out, "x\n");
    assert!(
        outcome.err.contains("kernel ready after"),
        "{}",
        outcome.err
    );
    let outcome = node.run(&["--quiet", "-c", "print('x')"]);
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("x\n", ""));
    node.assert_nothing_left();
}

#[test]
fn folders_may_be_given_relative_to_the_current_one() {
    let node = Node::busybox();
    let root = node.folder("here");
    let real = root.parent().expect("a parent").to_owned();
    let mut command = node.command(["--exec", "echo in"]);
    // The last of two equal options would be an error, so the command is made again.
    let mut relative = std::process::Command::new(command.get_program());
    let place = real.display().to_string();
    relative.args(command.get_args().map(|arg| {
        let text = arg.to_string_lossy();
        text.strip_prefix(&format!("{place}/"))
            .unwrap_or(&text)
            .to_owned()
    }));
    let given = command.get_envs();
    relative.envs(given.filter_map(|(name, value)| Some((name, value?))));
    relative.current_dir(&real);
    command = relative;
    let outcome = crate::program::Run::start(&mut command).end();
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "in\n"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}
