//! `backendai-agent image`, as processes of their own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::support::{Tar, gzip, noise, remains};

pub(super) fn agent(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command
        .args(["image", "--state-dir"])
        .arg(state)
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(super) fn succeeded(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn run(state: &Path, arguments: &[&str]) -> String {
    succeeded(agent(state).args(arguments).output().unwrap())
}

#[test]
fn an_image_is_imported_from_standard_input_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = agent(folder.path())
        .args([
            "import",
            "-",
            "my/image:1",
            "--json",
            "--label",
            "a=b=c",
            "--env",
            "P=",
            "--cmd=-c",
            "--cmd",
            "--x",
        ])
        .args(["--workdir", "/w", "--user", "5:6"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let archive = gzip(&Tar::new().file("x", b"x").finish());
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    let image: Value = serde_json::from_str(&succeeded(child.wait_with_output().unwrap())).unwrap();
    assert_eq!(image["names"], serde_json::json!(["my/image:1"]));
    assert_eq!(image["labels"], serde_json::json!({ "a": "b=c" }));
    assert_eq!(image["env"], serde_json::json!(["P="]));
    assert_eq!(image["command"], serde_json::json!(["-c", "--x"]));
    assert_eq!(image["repo_digest"], Value::Null);
    let listed: Value = serde_json::from_str(&run(folder.path(), &["ls", "--json"])).unwrap();
    assert_eq!(listed, Value::from(vec![image.clone()]));
    let table = run(folder.path(), &["ls"]);
    assert!(
        table.contains("my/image:1") && table.contains(&image["id"].as_str().unwrap()[7..19]),
        "{table}"
    );
    let removed: Value =
        serde_json::from_str(&run(folder.path(), &["rm", "--json", "my/image:1"])).unwrap();
    assert_eq!(removed, serde_json::json!({ "removed": ["my/image:1"] }));
    assert_eq!(run(folder.path(), &["ls", "--json"]).trim(), "[]");
    assert_eq!(remains(folder.path()), ["images/index.json"]);
}

#[test]
fn errors_name_the_image_and_set_the_status() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        ["rm", "no/such:1", "--json"],
        ["import", "/nowhere/no/such:1", "a/b:1"],
        ["pull", "127.0.0.1:1/no/such:1", "--json"],
    ] {
        let output = agent(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("no/such:1"), "{text}");
    }
    let output = agent(folder.path())
        .args(["import", "x", "a/b:1", "--label", "nothing"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn processes_may_import_into_one_store_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut archives = Vec::new();
    for number in 0..2_u8 {
        let path = folder.path().join(format!("{number}.tar"));
        let tar = Tar::new()
            .file("same", &noise(300_000, 4))
            .file("x", &[number])
            .finish();
        std::fs::write(&path, tar).unwrap();
        archives.push(path);
    }
    // Two processes for each of two archives: each layer is unpacked twice at the same time.
    let children: Vec<_> = (0..4)
        .map(|number| {
            let name = format!("my/image:{number}");
            agent(&state)
                .arg("import")
                .arg(&archives[number % 2])
                .args([&name, "--json"])
                .spawn()
                .unwrap()
        })
        .collect();
    let ids: Vec<Value> = children
        .into_iter()
        .map(|child| {
            let image: Value =
                serde_json::from_str(&succeeded(child.wait_with_output().unwrap())).unwrap();
            image["id"].clone()
        })
        .collect();
    assert!(
        ids[0] == ids[2] && ids[1] == ids[3] && ids[0] != ids[1],
        "{ids:?}"
    );
    let listed: Value = serde_json::from_str(&run(&state, &["ls", "--json"])).unwrap();
    let names: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["names"].as_array().unwrap())
        .collect();
    assert_eq!(names.len(), 4, "{listed}");
    assert!(!remains(&state).iter().any(|path| path.contains(".tmp-")));
}

#[test]
fn an_import_that_is_killed_leaves_nothing_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = agent(folder.path())
        .args(["import", "-", "my/image:1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let archive = Tar::new().file("x", &noise(1 << 20, 6)).finish();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&archive[..600_000])
        .unwrap();
    // The pipe is far smaller than what was written: the import is in the middle of the file.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        remains(folder.path())
            .iter()
            .any(|path| path.contains(".tmp-"))
    );
    assert_eq!(run(folder.path(), &["ls", "--json"]).trim(), "[]");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}
