//! Options that are wrong, and what is missing.

use std::process::Command;

use crate::program::Run;
use crate::support::Node;

#[test]
fn a_missing_image_names_the_remedy() {
    let node = Node::busybox();
    let outcome = node.run(&["-c", "1", "--mem", "64m", "--env", "A=b"]);
    assert_ne!(outcome.code, 2, "{}", outcome.err);
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command.args(["run", "--image", "nothing:1", "-c", "1"]);
    node.settle(&mut command);
    let outcome = Run::start(&mut command).end();
    assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
    for word in ["nothing:1", "image import", "image pull"] {
        assert!(outcome.err.contains(word), "{}", outcome.err);
    }
    node.assert_nothing_left();
}

#[test]
fn an_empty_store_names_the_remedy() {
    let node = Node::without_images();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command.args(["run", "-c", "1"]);
    node.settle(&mut command);
    let outcome = Run::start(&mut command).end();
    assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
    assert!(outcome.err.contains("image import"), "{}", outcome.err);
    node.assert_nothing_left();
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let node = Node::busybox();
    for args in [
        &["--no-such-option"][..],
        &["--timeout", "soon", "-c", "1"],
        &["-c", "1", "--exec", "true"],
        &["--runtime", "none", "-c", "1"],
        &["--uid", "me", "-c", "1"],
    ] {
        let outcome = node.run(args);
        assert_eq!((outcome.code, outcome.out.as_str()), (2, ""), "{args:?}");
        assert!(
            outcome.err.contains(args[0]) || outcome.err.contains("cannot be used"),
            "{}",
            outcome.err
        );
    }
    node.assert_nothing_left();
}

#[test]
fn what_the_machine_does_not_have_is_refused() {
    let node = Node::busybox();
    for (args, word) in [
        (["--mem", "999t"], "mem"),
        (["--cpu", "9999"], "cpu"),
        (["--mem", "much"], "--mem"),
        (["--env", "noequals"], "--env"),
        (["--mount", "/no/such/folder:x"], "/no/such/folder"),
    ] {
        let outcome = node.run(&[args[0], args[1], "--exec", "echo ran"]);
        assert_eq!((outcome.code, outcome.out.as_str()), (1, ""), "{args:?}");
        assert!(outcome.err.contains(word), "{args:?}: {}", outcome.err);
        node.assert_nothing_left();
    }
}

#[test]
fn the_environment_and_the_folders_of_the_options_are_inside() {
    let node = Node::busybox();
    let folder = node.folder("shared");
    std::fs::write(folder.join("here"), "from outside\n").expect("written");
    let mount = |mode: &str| format!("{}:data{mode}", folder.display());
    let script = "echo $COLOR; cat data/here; touch data/new && echo written";
    let outcome = node.run(&[
        "--env",
        "COLOR=a b",
        "--mount",
        &mount(":ro"),
        "--exec",
        script,
    ]);
    assert_eq!(outcome.out, "a b\nfrom outside\n", "{}", outcome.err);
    assert_ne!(outcome.code, 0);
    std::os::unix::fs::chown(&folder, Some(9001), None).expect("owned");
    let outcome = node.run(&["--mount", &mount(""), "--exec", script]);
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "\nfrom outside\nwritten\n")
    );
    assert!(folder.join("new").exists());
    node.assert_nothing_left();
}
