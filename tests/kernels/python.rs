//! Queries and input, in Python's image.

use backendai_agent::agent::request::{ExecuteMode, Request, RunStatus};

use crate::node::TestNode;

on_every_engine! {
    code_is_run_asked_interrupted_and_keeps_its_names
}

async fn code_is_run_asked_interrupted_and_keeps_its_names(mut node: TestNode) {
    node.use_python().await;
    node.create("k1").await;
    let query = |code: &str| ExecuteMode::Query(code.to_owned());
    let finished = node.finish("k1", "r1", query("x = 6\nprint(x * 7)")).await;
    assert_eq!(
        (finished.status, finished.out.as_str()),
        (RunStatus::Finished, "42\n")
    );
    let asked = node
        .finish(
            "k1",
            "r2",
            query("name = input('who? ')\nprint('hello', name, x)"),
        )
        .await;
    assert_eq!(asked.status, RunStatus::WaitingInput);
    let answer = ExecuteMode::Input("Joe".to_owned());
    let finished = node.finish("k1", "r2", answer).await;
    assert!(finished.out.ends_with("hello Joe 6\n"), "{finished:?}");
    let code = "import time\nprint('up')\nwhile True: time.sleep(0.1)";
    node.until_printed("k1", "r3", query(code), "up").await;
    node.interrupt("k1").await;
    let finished = node.finish("k1", "r3", ExecuteMode::Continue).await;
    assert!(finished.err.contains("KeyboardInterrupt"), "{finished:?}");
    let finished = node
        .finish("k1", "r4", query("raise ValueError('no')"))
        .await;
    assert!(finished.err.contains("ValueError: no"), "{finished:?}");
    let request = Request::GetCompletions {
        kernel: node.id("k1"),
        text: "import os\nos.getp".to_owned(),
        options: Default::default(),
    };
    node.handle(request).await.expect("answered");
    node.close().await;
}
