//! Ops that act at once, and messages that are no ops.

use crate::support::{Builder, plain_python, shell};

#[test]
fn status_is_answered_at_once_with_the_start_time() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("status", "");
    let (kind, body) = agent.recv();
    assert_eq!(kind, "status");
    let (head, float) = body.split_at(13);
    assert_eq!(head, b"\x81\xaastarted_at\xcb");
    assert!(f64::from_be_bytes(float.try_into().expect("eight bytes")) > 0.0);
}

#[test]
fn status_is_answered_while_a_command_and_a_query_run() {
    for op in ["exec", "code"] {
        let kernel = plain_python();
        let mut agent = kernel.agent();
        agent.send(
            op,
            if op == "exec" {
                "sleep 1000"
            } else {
                "import time; print('begun'); time.sleep(1000)"
            },
        );
        if op == "code" {
            agent.expect_stdout("begun\n");
        }
        agent.send("status", "");
        assert_eq!(agent.recv().0, "status");
        assert_ne!(agent.interrupt_command().code(), 0);
    }
}

#[test]
fn services_are_refused_with_a_reason() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send(
        "start-service",
        r#"{"name":"jupyter","port":8080,"protocol":"http","options":{}}"#,
    );
    let (kind, body) = agent.recv();
    let expected = r#"{"status": "failed", "error": "unsupported service"}"#;
    assert_eq!(
        (kind.as_str(), body),
        ("service-result", expected.as_bytes().to_vec())
    );
    agent.send("start-service", "{");
    let (kind, body) = agent.recv();
    assert_eq!(kind, "service-result");
    let result: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(result["status"], "failed");
}

#[test]
fn nothing_that_is_sent_ends_the_op_loop() {
    let kernel = shell();
    let mut agent = kernel.agent();
    for frames in [
        &[b"exec".as_slice()][..],
        &[b"", b""],
        &[b"a", b"b", b"c"],
        &[b"frobnicate", b"{}"],
        &[b"\xff\xfe", b"\xff"],
        &[b"interrupt", b""],
        &[b"input", b"nobody asks"],
        &[b"event", b"{"],
    ] {
        agent.send_frames(frames);
    }
    agent.send("complete", "{");
    assert_eq!(agent.recv(), ("completion".to_owned(), b"[]".to_vec()));
    assert_eq!(agent.exec("echo alive").out(), "alive\n");
}

#[test]
fn a_query_in_a_kernel_without_queries_is_127() {
    let kernel = shell();
    let mut agent = kernel.agent();
    let run = agent.query("1+1");
    assert_eq!(run.code(), 127);
    assert!(run.err().contains("query mode"), "{}", run.err());
}

#[test]
fn a_query_without_a_python_in_the_image_is_127_and_batch_works() {
    let kernel = Builder::new("python", Some("/nowhere/python"))
        .env("PATH", "/nowhere")
        .start();
    let mut agent = kernel.agent();
    let run = agent.query("1+1");
    assert_eq!(run.code(), 127);
    assert!(run.err().contains("/nowhere/python"), "{}", run.err());
    assert_eq!(agent.exec("echo works").out(), "works\n");
}

#[test]
fn more_ops_than_can_wait_are_refused_each_with_its_end_record() {
    let kernel = shell();
    let mut agent = kernel.agent();
    agent.send("exec", "echo begun; sleep 1000");
    agent.expect_stdout("begun\n");
    for _ in 0..4097 {
        agent.send("exec", "");
    }
    let refused = agent.recv_until("finished");
    assert_eq!(refused.code(), -1);
    assert_eq!(agent.interrupt_command().code(), -2);
    for _ in 0..4096 {
        assert_eq!(agent.recv_until("finished").code(), 0);
    }
}
