//! Commands in a kernel: steps, output, exit codes, interrupts, logs.

use backendai_agent::agent::request::{ExecuteMode, RunStatus};

use crate::node::{TestNode, batch, stdout};

on_every_engine! {
    a_batch_goes_through_its_steps
    output_comes_while_the_command_runs
    exit_codes_and_both_streams_are_told
    much_output_comes_whole
    an_interrupt_ends_a_command_and_not_the_kernel
    what_a_command_prints_is_in_the_logs
    runs_wait_for_each_other
}

async fn a_batch_goes_through_its_steps(node: TestNode) {
    node.create("k1").await;
    let steps = ExecuteMode::Batch {
        clean: "echo cleaned".to_owned(),
        build: "echo built".to_owned(),
        exec: "echo run".to_owned(),
    };
    let first = node.execute("k1", "r1", steps).await;
    assert_eq!(
        (first.status, stdout(&first).as_str()),
        (RunStatus::CleanFinished, "cleaned\n")
    );
    let second = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(
        (second.status, stdout(&second).as_str()),
        (RunStatus::BuildFinished, "built\n")
    );
    let last = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(
        (last.status, stdout(&last).as_str()),
        (RunStatus::Finished, "run\n")
    );
    assert_eq!(last.exit_code, Some(0));
    node.close().await;
}

async fn output_comes_while_the_command_runs(node: TestNode) {
    node.create("k1").await;
    let script = "echo first; while ! [ -e go ]; do sleep 0.05; done; echo second";
    node.until_printed("k1", "r1", batch(script), "first").await;
    std::fs::write(node.scratch("k1").join("work/go"), "").expect("write");
    let finished = node.finish("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(
        (finished.code, finished.out.as_str()),
        (Some(0), "second\n")
    );
    node.close().await;
}

async fn exit_codes_and_both_streams_are_told(node: TestNode) {
    node.create("k1").await;
    let finished = node.batch("k1", "echo out; echo err >&2; exit 7").await;
    assert_eq!(finished.code, Some(7));
    assert_eq!(
        (finished.out.as_str(), finished.err.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(node.batch("k1", "kill -9 $$").await.code, Some(-9));
    node.close().await;
}

async fn much_output_comes_whole(node: TestNode) {
    node.create("k1").await;
    let output = node.output("k1", "seq 200000").await;
    let last = output.lines().last();
    assert_eq!((output.lines().count(), last), (200_000, Some("200000")));
    node.close().await;
}

async fn an_interrupt_ends_a_command_and_not_the_kernel(node: TestNode) {
    node.create("k1").await;
    node.until_printed("k1", "r1", batch("echo up; exec sleep 1000"), "up")
        .await;
    node.interrupt("k1").await;
    let finished = node.finish("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(
        (finished.status, finished.code),
        (RunStatus::Finished, Some(-2))
    );
    assert_eq!(node.output("k1", "echo lives").await, "lives\n");
    node.close().await;
}

async fn what_a_command_prints_is_in_the_logs(node: TestNode) {
    node.create("k1").await;
    node.batch("k1", "echo for the log; echo and an error >&2")
        .await;
    for _ in 0..100 {
        let logs = node.logs("k1").await;
        let lines: Vec<_> = logs.lines().collect();
        if lines.contains(&"for the log") && lines.contains(&"and an error") {
            return node.close().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the log is {:?}", node.logs("k1").await);
}

async fn runs_wait_for_each_other(node: TestNode) {
    node.create("k1").await;
    let (one, two) = tokio::join!(
        node.batch("k1", "echo a >> order; sleep 0.2; echo b >> order"),
        node.batch("k1", "echo c >> order"),
    );
    assert_eq!((one.code, two.code), (Some(0), Some(0)));
    let order = node.output("k1", "cat order").await;
    assert!(
        ["a\nb\nc\n", "c\na\nb\n"].contains(&order.as_str()),
        "{order}"
    );
    node.close().await;
}
