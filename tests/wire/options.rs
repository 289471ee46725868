//! The program itself: options, environment, file, and exit statuses.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::services::free_port;

/// Runs the agent with nothing of our own environment but what is given.
fn agent(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    command.args(args).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn file(folder: &TempDir, text: &str) -> String {
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A host on which the start gets as far as etcd, which is not there.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

#[test]
fn everything_wrong_is_complained_about_at_once() {
    let args = [
        "--agent-port=0",
        "--container-port-range=31000-30000",
        "--etcd-addr=nowhere",
        "--sandbox-type=vm",
        "--limit-cpus=xyz",
        "--runtime=lxc",
        "--on-sigterm=explode",
        "--no-new-privileges=perhaps",
        "--metrics-addr=9100",
        "--log-file-size=big",
    ];
    let output = agent(
        &args,
        &[("BACKEND_DEBUG", "maybe"), ("BACKEND_VERBOSE", "1")],
    );
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for option in [
        "--agent-port",
        "--container-port-range",
        "--etcd-addr",
        "--sandbox-type",
        "--limit-cpus",
        "--runtime",
        "--on-sigterm",
        "--no-new-privileges",
        "--metrics-addr",
        "--log-file-size",
        "--debug",
        "--verbose",
    ] {
        assert!(text.contains(&format!("{option}:")), "{option} in {text}");
    }
    assert!(text.contains("30000-31000"), "the remedy is shown: {text}");
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    assert_eq!(agent(&["--no-such"], &[]).status.code(), Some(2));
}

#[test]
fn flags_in_the_environment_are_words_in_any_case() {
    for (word, good) in [
        ("true", true),
        ("YES", true),
        ("no", true),
        ("False", true),
        ("1", false),
    ] {
        // A scratch root that is missing ends the start behind the options.
        let env = [
            ("BACKEND_DEBUG", word),
            ("BACKEND_SCRATCH_ROOT", "/no/such"),
        ];
        let output = agent(&[], &env);
        let expected = if good { 1 } else { 2 };
        assert_eq!(
            output.status.code(),
            Some(expected),
            "{word}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_missing_scratch_root_is_a_failure_that_names_it() {
    let output = agent(&["--scratch-root=/no/such"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--scratch-root /no/such"));
}

#[test]
fn an_unknown_user_is_a_failure_that_names_it() {
    let host = Host::new();
    let root = format!("--scratch-root={}", host.path(""));
    let output = agent(&[&root, "--kernel-uid=nobody-of-that-name"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("nobody-of-that-name"));
}

#[test]
fn options_win_over_the_environment_and_that_over_the_file() {
    let host = Host::new();
    let config = file(&host.folder, "scratch-root = \"/from/file\"\n");
    let option = format!("--config={config}");
    let said = |args: &[&str], env: &[(&str, &str)]| stderr(&agent(args, env));
    assert!(said(&[&option], &[]).contains("/from/file"));
    let env = [("BACKEND_SCRATCH_ROOT", "/from/env")];
    assert!(said(&[&option], &env).contains("/from/env"));
    let args = [&option[..], "--scratch-root=/from/option"];
    assert!(said(&args, &env).contains("/from/option"));
    let env = [("BACKEND_AGENT_CONFIG", &config[..])];
    assert!(said(&[], &env).contains("/from/file"));
}

#[test]
fn unknown_keys_and_wrong_values_in_the_file_are_errors() {
    let host = Host::new();
    let config = file(
        &host.folder,
        "agent-prot = 6001\nagent-port = 99999\njail-arg = \"x\"\ndebug = [1]\n",
    );
    let output = agent(&["--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in ["agent-prot", "--agent-port", "jail-arg", "debug takes"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let missing = agent(&["--config", "/no/such.toml"], &[]);
    assert_eq!(missing.status.code(), Some(2));
    let config = file(&host.folder, "this is no toml");
    assert_eq!(agent(&["--config", &config], &[]).status.code(), Some(2));
}

#[test]
fn every_option_of_the_original_is_accepted() {
    let host = Host::new();
    let (pid, log) = (host.path("pid"), host.path("log"));
    let args = [
        "--namespace=x",
        "--agent-host-override=h",
        "--kernel-host-override=h",
        "--agent-port=6001",
        "--container-port-range=1-65535",
        "--etcd-addr=[::1]:2379",
        "--etcd-user=u",
        "--etcd-password=p",
        "--idle-timeout=5",
        "--sandbox-type=jail",
        "--jail-arg= -x",
        "--jail-arg=y",
        "--kernel-uid=1000",
        "--scratch-in-memory",
        "--debug-kernel=/a/ai/backend",
        "--debug-jail=/a",
        "--debug-hook=/a",
        "--debug-skip-container-deletion",
        "--kernel-aliases=x",
        "--limit-cpus=0xff",
        "--limit-gpus=f",
        "--pid-file",
        &pid,
        "--debug",
        "-v",
        "--log-file",
        &log,
        "--log-file-count=3",
        "--log-file-size=0.5",
        // Ends the start behind the options.
        "--scratch-root=/no/such",
    ];
    let output = agent(&args, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let wrong = agent(&["--debug-kernel=/a"], &[]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn an_unreachable_etcd_ends_the_start_with_its_address() {
    let host = Host::new();
    let address = format!("127.0.0.1:{}", free_port());
    let pid = host.path("pid");
    let root = format!("--scratch-root={}", host.path(""));
    let log = host.path("log");
    let args = [
        &root,
        "--log-file",
        &log,
        "--run-dir",
        &host.path("run"),
        "--etcd-addr",
        &address,
        "--pid-file",
        &pid,
    ];
    let output = agent(&args, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains(&address) && text.contains("--etcd-addr"),
        "{text}"
    );
    assert!(!Path::new(&pid).exists());
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.is_empty());
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["fields"]["message"].is_string());
    }
}

#[test]
fn serve_may_be_named_and_other_commands_take_the_common_options() {
    let named = agent(&["serve", "--scratch-root=/no/such"], &[]);
    assert_eq!(named.status.code(), Some(1), "{}", stderr(&named));
    assert!(stderr(&named).contains("/no/such"));
    let env = [("BACKEND_SCRATCH_ROOT", "/no/such")];
    assert!(stderr(&agent(&["serve"], &env)).contains("/no/such"));
    for command in [
        &["run", "-c", "1"][..],
        &["image", "ls"],
        &["ps"],
        &["inspect", "k"],
        &["logs", "k"],
        &["exec", "k"],
    ] {
        let mut args = [command, &["--runtime=lxc", "--snapshotter=native"]].concat();
        args.push("--runtime-handler=crun");
        if command[0] == "exec" {
            args.extend(["--", "true"]);
        }
        let wrong = agent(&args, &[]);
        assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
        assert!(stderr(&wrong).contains("--runtime:"));
    }
}

#[test]
fn the_help_of_a_command_says_more_than_its_options() {
    for (command, part) in [
        ("ps", "started_at"),
        ("inspect", "scratch (the kernel's folder)"),
        ("logs", "this is what its runner says"),
        ("exec", "it gets no input"),
        ("doctor", "remedy"),
        ("run", "read from standard input"),
    ] {
        let help = agent(&[command, "--help"], &[]);
        let text = String::from_utf8(help.stdout).unwrap().replace('\n', " ");
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_password_is_not_shown_in_the_help() {
    let help = agent(&["--help"], &[("BACKEND_ETCD_PASSWORD", "hush-hush")]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("BACKEND_ETCD_PASSWORD") && !text.contains("hush-hush"));
}
