//! The program as a shim starts it: the pipes stay open after the container's end, and yet the last line is known.

use std::io::{Read, Write};

use backendai_monitor::{Collect, is_complete, log};

#[test]
fn a_log_is_complete_once_the_pipes_are_empty_and_all_is_written() {
    let dir = tempfile::tempdir().expect("temp dir");
    let collect = Collect {
        logs: dir.path().to_owned(),
        log_limit: 64 << 20,
    };
    let script = r#"exec 3<&0 4< <(:) 5>&1; exec "$0" "$@""#;
    let mut child = std::process::Command::new("/bin/bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_backendai-monitor")])
        .args(collect.args())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("bash");
    let mut ready = child.stdout.take().expect("piped");
    assert_eq!(ready.read(&mut [0]).expect("ready"), 1);
    let mut output = child.stdin.take().expect("piped");
    let text = "0123456789abcdef\n".repeat(100_000);
    output.write_all(text.as_bytes()).expect("write");
    while !is_complete(dir.path()).expect("look") {
        std::thread::yield_now();
    }
    let kept = log::tail(dir.path(), 64 << 20).expect("tail");
    assert_eq!(kept.len(), text.len());
    drop(output);
    assert!(child.wait().expect("wait").success());
}
