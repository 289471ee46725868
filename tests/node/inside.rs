//! What the code sees of itself: namespaces, privileges, users, folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use crate::program::Run;
use crate::support::Node;

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}: {status}"))
        .trim_start_matches(':')
        .trim()
}

#[test]
fn the_code_has_namespaces_of_its_own() {
    let node = Node::python();
    let names = ["pid", "mnt", "net", "ipc", "uts", "cgroup"];
    let code = format!("import os\nfor n in {names:?}: print(os.readlink('/proc/self/ns/' + n))");
    let inside = node.output(&code);
    assert_eq!(inside.lines().count(), names.len());
    for (name, inside) in names.iter().zip(inside.lines()) {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).expect("namespace");
        assert!(inside.starts_with(name));
        assert_ne!(host.to_string_lossy(), inside);
    }
    assert!(
        node.is_docker() || !node.ids().is_empty(),
        "the search for cgroups knows the container"
    );
    node.assert_nothing_left();
}

#[test]
fn the_code_has_a_filter_and_few_privileges() {
    let node = Node::python();
    let user = node.output("print(open('/proc/self/status').read())");
    assert_eq!(field(&user, "Seccomp"), "2");
    assert_eq!(field(&user, "CapEff"), "0000000000000000");
    let bounding = u64::from_str_radix(field(&user, "CapBnd"), 16).expect("a number");
    // CAP_SYS_ADMIN, CAP_SYS_MODULE, CAP_SYS_PTRACE, CAP_NET_ADMIN, CAP_SYS_BOOT
    for cap in [21, 16, 19, 12, 22] {
        assert_eq!(bounding >> cap & 1, 0, "capability {cap}");
    }
    node.assert_nothing_left();
}

#[test]
fn the_runners_layer_and_the_configuration_cannot_be_written() {
    let node = Node::busybox();
    let script = "for f in /opt/backend.ai /opt/backend.ai/bin /home/config /sys /proc/sys/kernel; do \
                  touch $f/new 2> /dev/null && echo wrote $f; done; touch /home/work/new && echo work";
    let outcome = node.run(&["--exec", script]);
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "work\n"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}

#[test]
fn root_inside_cannot_raise_its_limits() {
    let node = Node::python();
    let script = "id -u; for f in /sys/fs/cgroup/*/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
                  /sys/fs/cgroup/*/cpu.shares /sys/fs/cgroup/*/pids.max /sys/fs/cgroup/pids.max; do \
                  if [ -e $f ]; then (echo 9000 > $f) 2> /dev/null && echo wrote $f; fi; done; \
                  mkdir /sys/fs/cgroup/*/sub 2> /dev/null && echo made; true";
    let outcome = node.run(&["--uid", "0", "--exec", script]);
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "0\n"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}

#[test]
fn the_user_inside_is_the_person_outside() {
    let node = Node::python();
    let folder = node.folder("mine");
    let code = "import os; print(os.getuid())";
    let uid = |prepare: &dyn Fn(&mut std::process::Command), args: &[&str]| {
        let mut command = node.command(args);
        prepare(&mut command);
        let outcome = Run::start(&mut command).end();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        outcome.out.trim().to_owned()
    };
    assert_eq!(uid(&|_| {}, &["-c", code]), "9001");
    let sudo = |command: &mut std::process::Command| {
        command.env("SUDO_UID", "1234");
    };
    assert_eq!(uid(&sudo, &["-c", code]), "1234");
    assert_eq!(uid(&sudo, &["--uid", "4321", "-c", code]), "4321");
    chown(&folder, Some(2345), None).expect("owned");
    let at_home = |command: &mut std::process::Command| {
        command.env("SUDO_UID", "0").current_dir(&folder);
    };
    assert_eq!(uid(&at_home, &["-c", code]), "2345");
    let mount = format!("{}:mine", folder.display());
    let write = "open('mine/made', 'w').write('x'); import os; print(os.getuid())";
    assert_eq!(uid(&at_home, &["--mount", &mount, "-c", write]), "2345");
    let made = fs::metadata(folder.join("made")).expect("made");
    assert_eq!(made.uid(), 2345);
    node.assert_nothing_left();
}

#[test]
fn root_is_the_user_inside_when_it_is_asked_for() {
    let node = Node::python();
    let outcome = node.run(&["--uid", "0", "-c", "import os; print(os.getuid())"]);
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "0\n"),
        "{}",
        outcome.err
    );
    node.assert_nothing_left();
}

#[test]
fn other_processes_are_not_seen() {
    let node = Node::busybox();
    let outcome = node.run(&["--exec", "ls -d /proc/[0-9]* | wc -l"]);
    let count: usize = outcome.out.trim().parse().expect("a number");
    assert!(count < 10, "{count}");
    node.assert_nothing_left();
}
