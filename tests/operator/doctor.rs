//! `backendai-agent doctor`, as a process of its own.

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn doctor(folder: &TempDir, args: &[&str]) -> Output {
    let path = |name: &str| folder.path().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command.arg("doctor").args(args).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("BACKEND_SCRATCH_ROOT", path("scratch"));
    command.env("BACKEND_STATE_DIR", path("state"));
    command.arg("--run-dir").arg(path("run"));
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.stderr.is_empty(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn find<'a>(report: &'a Value, check: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|it| it["check"] == check);
    found.unwrap_or_else(|| panic!("{check} in {report}"))
}

fn names(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .map(|it| it["check"].as_str().unwrap())
        .collect()
}

#[test]
fn a_machine_that_runs_kernels_passes_and_keeps_no_trace_of_the_probes() {
    let folder = tempfile::tempdir().unwrap();
    let output = doctor(&folder, &["--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(
        (&report["ok"], &report["engine"]),
        (&true.into(), &"youki".into())
    );
    let expected = [
        "user",
        "capabilities",
        "raising-limits",
        "open-files",
        "linux",
        "pidfd",
        "namespaces",
        "seccomp",
        "memory-programs",
        "cgroup-controllers",
        "cgroup-writable",
        "cgroup-swap",
        "scratch-folder",
        "run-folder",
        "state-folder",
        "state-space",
        "scratch-space",
        "state-mount",
        "overlay",
        "krunner",
        "nft",
        "nft-rules",
        "bridge",
        "ip-forward",
        "foreign-filter",
        "host-ports",
        "outgoing-ports",
        "name-servers",
        "images",
        "engine-youki",
        "engine-containerd",
        "engine-docker",
        "containerd-handler",
        "docker-init",
    ];
    assert_eq!(names(&report), expected);
    for check in report["checks"].as_array().unwrap() {
        let status = check["status"].as_str().unwrap();
        assert!(["ok", "info", "warning"].contains(&status), "{check}");
        assert!(!check["detail"].as_str().unwrap().is_empty());
        assert_eq!(
            check["remedy"].is_string() || status == "info",
            status != "ok",
            "{check}"
        );
    }
    for real in ["overlay", "krunner", "nft-rules", "bridge", "engine-youki"] {
        assert_eq!(find(&report, real)["status"], "ok");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .collect();
    assert!(left.is_empty(), "looking makes nothing: {left:?}");
}

#[test]
fn what_is_broken_fails_with_its_remedy_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--state-dir", "/proc/none", "--json"];
    let output = doctor(&folder, &args);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&output);
    assert_eq!(report["ok"], false);
    for check in ["state-folder", "overlay", "krunner", "engine-youki"] {
        let check = find(&report, check);
        assert_eq!(check["status"], "failed", "{check}");
        assert!(check["remedy"].as_str().unwrap().contains("--state-dir"));
    }
    let output = doctor(&folder, &args[..2]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("remedy: ") && text.contains("4 failed"),
        "{text}"
    );
}

#[test]
fn only_the_chosen_engine_must_answer() {
    let folder = tempfile::tempdir().unwrap();
    for (engine, other) in [("docker", "containerd"), ("containerd", "docker")] {
        let args = [
            "--runtime",
            engine,
            "--runtime-endpoint",
            "/no/such.sock",
            "--json",
        ];
        let output = doctor(&folder, &args);
        assert_eq!(output.status.code(), Some(1));
        let report = json(&output);
        assert_eq!(report["engine"], engine);
        let chosen = find(&report, &format!("engine-{engine}"));
        assert_eq!(chosen["status"], "failed", "{chosen}");
        assert!(
            chosen["remedy"]
                .as_str()
                .unwrap()
                .contains("--runtime-endpoint")
        );
        let other = find(&report, &format!("engine-{other}"));
        assert!(
            ["ok", "info"].contains(&other["status"].as_str().unwrap()),
            "{other}"
        );
        assert_eq!(find(&report, "engine-youki")["status"], "info");
    }
}

#[test]
fn a_port_that_another_program_has_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ports up to the one that is taken, which is the only one that is known.
    let range = format!("{}-{port}", port - 1);
    let output = doctor(&folder, &["--json", "--container-port-range", &range]);
    let report = json(&output);
    let check = find(&report, "host-ports");
    assert!(
        check["detail"]
            .as_str()
            .unwrap()
            .contains(&port.to_string()),
        "{check}"
    );
    assert_eq!(
        check["status"], "failed",
        "a range of two ports is too small: {check}"
    );
    let wrong = doctor(&folder, &["--container-port-range", "9-1"]);
    assert_eq!(wrong.status.code(), Some(2));
}
