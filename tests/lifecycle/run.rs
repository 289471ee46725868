//! Running code: results, order, queueing, input, interruption, services, output files.

use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::{
    ConsoleItem, Execute, ExecuteMode, Reply, Request, RunStatus,
};
use backendai_agent::runtime::fake::{RunnerScript, RunnerSide, no_runner};
use serde_json::json;
use tokio::time::Instant;

use crate::node::{TestNode, id, result, stdout};

const FLUSH: Option<Duration> = Some(Duration::from_secs(2));

fn input(text: &str) -> ExecuteMode {
    ExecuteMode::Input(text.to_owned())
}

fn code(text: &str) -> ExecuteMode {
    ExecuteMode::Query(text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_query_gives_its_output_and_exit_code() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let result = node.query("k1", "r1", "out hi\nerr no\nexit 3").await;
    assert_eq!(result.status, RunStatus::Finished);
    assert_eq!((result.exit_code, result.options.as_ref()), (Some(3), None));
    assert_eq!(
        result.console,
        [
            ConsoleItem::Stdout("hi\n".to_owned()),
            ConsoleItem::Stderr("no\n".to_owned())
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_without_an_id_gets_one_of_32_hex_digits() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let call = Execute {
        kernel: id("k1"),
        run: None,
        mode: code("out hi"),
        flush_timeout: None,
    };
    let reply = node.handle(Request::Execute(Box::new(call))).await;
    let run = result(reply.expect("executed")).run;
    assert_eq!(run.len(), 32);
    assert!(run.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[tokio::test(start_paused = true)]
async fn a_batch_ends_its_calls_at_each_step() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let batch = ExecuteMode::Batch {
        clean: String::new(),
        build: "make".to_owned(),
        exec: "out done".to_owned(),
    };
    let first = node.execute("k1", "r1", batch).await;
    assert_eq!(first.status, RunStatus::CleanFinished);
    let second = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(second.status, RunStatus::BuildFinished);
    let last = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(last.status, RunStatus::Finished);
    assert_eq!(stdout(&last), "done\n");
}

#[tokio::test(start_paused = true)]
async fn the_flush_time_gives_what_there_is_and_the_run_goes_on() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let began = Instant::now();
    let reply = node
        .try_execute("k1", "r1", code("out a\nsleep 3000\nout b"), FLUSH)
        .await;
    let first = result(reply.expect("executed"));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(first.status, RunStatus::Continued);
    assert_eq!((stdout(&first).as_str(), first.exit_code), ("a\n", None));
    let last = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(
        (last.status, stdout(&last).as_str()),
        (RunStatus::Finished, "b\n")
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_flush_time_a_call_waits_for_the_mark() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let result = node.query("k1", "r1", "out a\nsleep 9000000\nout b").await;
    assert_eq!(stdout(&result), "a\nb\n");
}

#[tokio::test(start_paused = true)]
async fn input_reaches_the_program_that_waits_for_it() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let asked = node.query("k1", "r1", "ask name?\nout done").await;
    assert_eq!(asked.status, RunStatus::WaitingInput);
    assert_eq!(asked.options, Some(json!({"is_password": false})));
    assert_eq!(stdout(&asked), "name?");
    let last = node.execute("k1", "r1", input("Joe")).await;
    assert_eq!(stdout(&last), "Joe\ndone\n");
}

#[tokio::test(start_paused = true)]
async fn a_second_run_is_sent_only_when_the_first_has_finished_and_then_goes_on_normally() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let (first, second) = tokio::join!(
        node.query("k1", "r1", "sleep 5000\nout one"),
        node.query("k1", "r2", "ask two?")
    );
    assert_eq!(stdout(&first), "one\n");
    assert_eq!(second.status, RunStatus::WaitingInput);
    let last = node.execute("k1", "r2", input("yes")).await;
    assert_eq!(
        (last.status, stdout(&last).as_str()),
        (RunStatus::Finished, "yes\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_nobody_fetches_does_not_hold_up_the_next() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let reply = node
        .try_execute("k1", "r1", code("sleep 3000\nout lost"), FLUSH)
        .await;
    assert_eq!(
        result(reply.expect("executed")).status,
        RunStatus::Continued
    );
    assert_eq!(stdout(&node.query("k1", "r2", "out two").await), "two\n");
    let late = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(stdout(&late), "lost\n");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_loses_no_output() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let call = node.try_execute("k1", "r1", code("out a\nsleep 5000\nout b"), None);
    let given_up = tokio::time::timeout(Duration::from_secs(1), call).await;
    assert!(given_up.is_err());
    let last = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(stdout(&last), "a\nb\n");
}

#[tokio::test(start_paused = true)]
async fn raw_html_in_media_does_not_wedge_the_kernel() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let first = node.query("k1", "r1", "record media <b>b</b>").await;
    assert_eq!(first.console, [ConsoleItem::Html("<b>b</b>".to_owned())]);
    assert_eq!(stdout(&node.query("k1", "r2", "out on").await), "on\n");
}

#[tokio::test(start_paused = true)]
async fn undecodable_and_unknown_records_are_passed_over() {
    let bad: RunnerScript = Arc::new(|mut side: RunnerSide| {
        Box::pin(async move {
            while side.op().await.is_some() {
                side.say("html", &b"\xff"[..]).await;
                side.say("completion", "{").await;
                side.say("nonsense", "x").await;
                let one_frame = zmtp::Message::from(["stdout"]);
                side.records.send(one_frame).await.expect("the agent reads");
                side.say("finished", "not json").await;
            }
        })
    });
    let node = TestNode::with(bad).await;
    node.create("k1").await;
    let result = node.query("k1", "r1", "").await;
    assert_eq!(result.console, [ConsoleItem::Html("\u{FFFD}".to_owned())]);
    assert_eq!(
        (result.status, result.exit_code),
        (RunStatus::Finished, None)
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_ends_what_runs() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let interrupt = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        node.handle(Request::InterruptKernel { kernel: id("k1") })
            .await
    };
    let (run, interrupted) = tokio::join!(node.query("k1", "r1", "hang"), interrupt);
    assert_eq!(run.exit_code, Some(-2));
    assert!(matches!(interrupted, Ok(Reply::Done)));
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_kernel_is_destroyed_is_cancelled() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let destroy = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        node.destroy("k1").await
    };
    let (run, _) = tokio::join!(node.try_execute("k1", "r1", code("hang"), None), destroy);
    assert!(matches!(run, Ok(Reply::Cancelled)), "{run:?}");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn execution_on_an_unknown_kernel_is_an_error_and_reports_its_end() {
    let mut node = TestNode::new().await;
    let error = node.try_execute("k9", "r1", code("out"), None).await;
    assert!(matches!(error, Err(AgentError::UnknownKernel(_))));
    assert_eq!(node.events(), ["terminated k9 self-terminated"]);
}

fn start_service(name: &str) -> Request {
    Request::StartService {
        kernel: id("k1"),
        service: name.to_owned(),
        options: serde_json::Map::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_started_and_its_answer_passed_through() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let reply = node.handle(start_service("jupyter")).await;
    let Ok(Reply::Json(answer)) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(answer, json!({"status": "started"}));
    let reply = node.handle(start_service("nosuch")).await;
    let Ok(Reply::Json(answer)) = reply else {
        panic!("{reply:?}");
    };
    let expected = json!({"status": "failed", "error": "invalid service name"});
    assert_eq!(answer, expected);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_does_not_answer_ends_service_and_completion_calls_in_time() {
    let node = TestNode::with(no_runner()).await;
    node.create("k1").await;
    let error = node.handle(start_service("jupyter")).await;
    assert!(matches!(error, Err(AgentError::TimedOut(_))), "{error:?}");
    let complete = Request::GetCompletions {
        kernel: id("k1"),
        text: "impo".to_owned(),
        options: serde_json::Map::new(),
    };
    let error = node.handle(complete).await;
    assert!(matches!(error, Err(AgentError::TimedOut(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_answered() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let complete = Request::GetCompletions {
        kernel: id("k1"),
        text: "impo".to_owned(),
        options: serde_json::Map::new(),
    };
    let reply = node.handle(complete).await;
    let Ok(Reply::Json(answer)) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(answer, json!({"suggestions": []}));
}

#[tokio::test(start_paused = true)]
async fn files_that_a_run_leaves_are_reported_once() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let output = node.scratch("k1").join("work/.output");
    std::fs::create_dir(&output).expect("made");
    std::fs::write(output.join("old"), "1").expect("written");
    let writes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(output.join("new"), "1").expect("written");
    };
    let (first, ()) = tokio::join!(node.query("k1", "r1", "sleep 3000"), writes);
    let new = [("new".to_owned(), "#dummy-upload".to_owned())];
    assert_eq!(first.files, new);
    assert_eq!(node.query("k1", "r2", "out").await.files, []);
}

#[tokio::test(start_paused = true)]
async fn a_command_of_the_terminal_reports_no_files() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let output = node.scratch("k1").join("work/.output");
    std::fs::create_dir(&output).expect("made");
    let writes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(output.join("new"), "1").expect("written");
    };
    let code = "sleep 3000\nrecord finished {\"upload_output_files\": false}";
    let (run, ()) = tokio::join!(node.query("k1", "r1", code), writes);
    assert_eq!((run.status, run.files.len()), (RunStatus::Finished, 0));
}

/// Writes 64 MiB as fast as it is taken, then ends the run.
fn flood() -> RunnerScript {
    Arc::new(|mut side: RunnerSide| {
        Box::pin(async move {
            while side.op().await.is_some() {
                for _ in 0..1024 {
                    side.say("stdout", vec![b'x'; 64 * 1024]).await;
                }
                side.say("finished", r#"{"exitCode": 0}"#).await;
            }
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_held_back_and_nothing_of_it_is_lost() {
    let node = TestNode::with(flood()).await;
    node.create("k1").await;
    let (mut total, mut mode) = (0, code("flood"));
    loop {
        let piece = node.execute("k1", "r1", mode).await;
        // A little above the limit: the last record that was let in.
        assert!(stdout(&piece).len() <= 17 << 20);
        total += stdout(&piece).len();
        if piece.status == RunStatus::Finished {
            break;
        }
        mode = ExecuteMode::Continue;
    }
    assert_eq!(total, 64 << 20);
}

#[tokio::test(start_paused = true)]
async fn streaming_gives_output_as_soon_as_it_is_there() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let call = |mode| Execute {
        kernel: id("k1"),
        run: Some("r1".to_owned()),
        mode,
        flush_timeout: None,
    };
    let first = node
        .agent
        .run_streaming(call(code("out a\nsleep 60000\nout b")))
        .await;
    let first = first.expect("executed").expect("not cancelled");
    assert_eq!(
        (first.status, stdout(&first).as_str()),
        (RunStatus::Continued, "a\n")
    );
    let second = node.agent.run_streaming(call(ExecuteMode::Continue)).await;
    assert_eq!(
        stdout(&second.expect("executed").expect("not cancelled")),
        "b\n"
    );
}
