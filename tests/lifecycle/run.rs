//! Running code: results, order, input, interruption, files.

use std::time::Duration;

use backendai_agent::agent::request::{ConsoleItem, ExecuteMode, Reply, Request, RunStatus};

use crate::node::{TestNode, id, result, stdout};

#[tokio::test(start_paused = true)]
async fn a_query_gives_its_output_and_exit_code() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let result = node.query("k1", "r1", "out hi\nerr no\nexit 3").await;
    assert_eq!(result.status, RunStatus::Finished);
    assert_eq!(result.exit_code, Some(3));
    assert_eq!(
        result.console,
        [
            ConsoleItem::Stdout("hi\n".to_owned()),
            ConsoleItem::Stderr("no\n".to_owned())
        ]
    );
}
