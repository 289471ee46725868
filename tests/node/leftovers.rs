//! A run that is killed, and the next.

use rustix::process::Signal;

use crate::support::{Node, cgroups, nft_tables};

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let node = Node::python();
    let mut run = node.start(&["-c", "print('up')\nimport time\ntime.sleep(1000)"]);
    assert_eq!(run.line(), "up\n");
    if !node.is_docker() {
        let ids = node.ids();
        assert_eq!(ids.len(), 1);
        let name = node.network_name();
        // The search finds what there is, so that finding nothing later means something.
        assert!(ids.iter().all(|id| !cgroups(id).is_empty()));
        assert!(nft_tables().contains(&name));
    }
    run.signal(Signal::KILL);
    let (status, _, _) = run.wait();
    assert_eq!(status.code(), None);
    assert!(node.processes().len() > 1, "the kernel outlives its run");
    assert_eq!(node.output("print('next')"), "next\n");
    node.assert_nothing_left();
}

#[test]
fn a_living_run_is_not_taken_for_a_killed_one() {
    let node = Node::busybox();
    let mut first = node.start(&[
        "--exec",
        "echo up; while ! [ -e go ]; do sleep 0.1; done; echo down",
    ]);
    assert_eq!(first.line(), "up\n");
    let mut killed = node.start(&["--exec", "echo up; sleep 1000"]);
    assert_eq!(killed.line(), "up\n");
    killed.signal(Signal::KILL);
    killed.wait();
    assert_eq!(node.run(&["--exec", "true"]).code, 0);
    first.signal(Signal::INT);
    assert_eq!(first.end().code, 130);
    node.assert_nothing_left();
}
