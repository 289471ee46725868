//! `ps`, `inspect`, `logs` and `exec` on the engine in memory.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use backendai_agent::cli::exec::{ExecArgs, exec};
use backendai_agent::cli::inspect::describe;
use backendai_agent::cli::kernels::Places;
use backendai_agent::cli::logs::{LogsArgs, logs};
use backendai_agent::cli::ps::{PsArgs, list};
use backendai_agent::runtime::fake::{FakeRuntime, no_runner};
use backendai_agent::runtime::{
    ContainerId, ContainerRuntime, ContainerSpec, DEFAULT_CAPABILITIES, ImageInfo, LABEL_AGENT_ID,
    LABEL_KERNEL_ID, LABEL_OWNER, Limits, NetworkMode, OWNER, PortBinding, Seccomp,
};
use backendai_agent::sys::proc::Proc;
use serde_json::{Value, json};

/// An engine, and the folders where kernels' files would be.
struct Node {
    runtime: FakeRuntime,
    folder: tempfile::TempDir,
}

/// What a command wrote.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic while held").clone()).expect("text")
    }
}

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while held").write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that has gone away.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Node {
    fn new() -> Self {
        let runtime = FakeRuntime::new(no_runner());
        runtime.add_image(ImageInfo {
            names: vec!["python:3".to_owned()],
            id: "sha256:01".to_owned(),
            ..ImageInfo::default()
        });
        Self {
            runtime,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn places(&self) -> Places {
        Places {
            scratch_root: self.folder.path().join("scratch"),
            runs: self.folder.path().join("runs"),
            proc: Proc::at(self.folder.path()),
            images: [("sha256:01".to_owned(), "python:3".to_owned())].into(),
        }
    }

    /// A running container of a kernel.
    async fn kernel(&self, kernel: &str, id: char) -> ContainerId {
        let labels = [
            (LABEL_OWNER, OWNER),
            (LABEL_KERNEL_ID, kernel),
            (LABEL_AGENT_ID, "i-agent"),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let spec = ContainerSpec {
            id: ContainerId(id.to_string().repeat(64)),
            name: format!("kernel.python.{kernel}"),
            image: "sha256:01".to_owned(),
            args: vec!["krunner".to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            hostname: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            limits: Limits::default(),
            network: NetworkMode::Bridge,
            ports: vec![PortBinding {
                // No two containers have the same port.
                host: 30_000 + u16::from(id as u8 - b'a'),
                container: 2000,
            }],
            labels: labels.into(),
            seccomp: Seccomp::Default,
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).into(),
            no_new_privileges: false,
            log_limit: 1 << 20,
        };
        let id = self.runtime.create(&spec).await.expect("created");
        self.runtime.start(&id).await.expect("started");
        id
    }

    fn resource_file(&self, folder: &str, text: &str) -> PathBuf {
        let folder = self.folder.path().join(folder);
        std::fs::create_dir_all(folder.join("config")).expect("a folder");
        std::fs::write(folder.join("config/resource.txt"), text).expect("a file");
        folder
    }

    async fn ps(&self, all: bool, json: bool) -> String {
        let args = PsArgs {
            all,
            json,
            ..PsArgs::default()
        };
        let listed = list(&args, &self.runtime, &self.places()).await;
        listed.expect("listed")
    }

    async fn ps_json(&self, all: bool) -> Value {
        serde_json::from_str(&self.ps(all, true).await).expect("JSON")
    }

    async fn logs(&self, args: LogsArgs) -> String {
        let mut screen = Screen::default();
        let done = logs(&args, &self.runtime, &mut screen).await;
        done.expect("printed");
        screen.text()
    }
}

fn exec_args(name: &str) -> ExecArgs {
    ExecArgs {
        name: name.to_owned(),
        user: (0, 0),
        workdir: "/".into(),
        env: Vec::new(),
        timeout: 5,
        scratch_root: None,
        command: vec!["id".to_owned(), "-u".to_owned()],
    }
}

fn log_of(name: &str) -> LogsArgs {
    LogsArgs {
        name: name.to_owned(),
        ..LogsArgs::default()
    }
}

#[tokio::test]
async fn without_kernels_the_table_and_the_list_are_empty() {
    let node = Node::new();
    assert_eq!(node.ps(true, true).await, "[]");
    let table = node.ps(true, false).await;
    assert!(
        table.trim_start().starts_with("KERNEL") && table.lines().count() == 1,
        "{table}"
    );
}

#[tokio::test]
async fn a_kernel_is_listed_with_all_that_is_known() {
    let node = Node::new();
    let id = node.kernel("kernel-number-one", 'a').await;
    let text = "CID=x\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={\"cpu\": \"1\", \"mem\": \"536870912\"}\n";
    let folder = node.resource_file("scratch/kernel-number-one", text);
    let pid = node.ps_json(false).await[0]["pid"].clone();
    let process = format!("{pid} (x) S {}0", "1 ".repeat(18));
    std::fs::create_dir(node.folder.path().join(pid.to_string())).expect("a folder");
    std::fs::write(node.folder.path().join(format!("{pid}/stat")), process).expect("a file");
    std::fs::write(node.folder.path().join("stat"), "btime 1000\n").expect("a file");
    let mut wanted = json!({
        "kernel_id": "kernel-number-one",
        "container_id": id.0,
        "name": "kernel.python.kernel-number-one",
        "image": "python:3",
        "state": "running",
        "exit_code": null,
        "oom_killed": null,
        "pid": pid,
        "started_at": 1000,
        "address": null,
        "ports": [{"host": 30000, "container": 2000}],
        "agent_id": "i-agent",
        "slots": {"cpu": "1", "mem": "536870912"},
    });
    assert_eq!(node.ps_json(false).await, json!([wanted]));
    let table = node.ps(false, false).await;
    for word in [
        "kernel-numbe ",
        "aaaaaaaaaaaa ",
        "python:3",
        "running",
        "30000->2000",
        "i-agent",
        "cpu=1 mem=512m",
    ] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let more = describe("kernel-n", &node.runtime, &node.places()).await;
    wanted["labels"] = json!({
        "ai.backend.agent-id": "i-agent",
        "ai.backend.kernel-id": "kernel-number-one",
        "ai.backend.owner": "backendai-agent",
    });
    wanted["cgroup"] = json!(format!("/fake/{id}"));
    wanted["scratch"] = json!(folder);
    assert_eq!(more.expect("described"), wanted);
}

#[tokio::test]
async fn slots_of_a_run_are_found_in_the_folder_of_the_run() {
    let node = Node::new();
    node.kernel("k-run", 'a').await;
    node.resource_file("runs/k-run/scratch/k-run", "SLOTS={\"cpu\": \"2\"}\n");
    assert_eq!(node.ps_json(false).await[0]["slots"], json!({"cpu": "2"}));
}

#[tokio::test]
async fn the_dead_are_listed_when_asked_for_with_how_they_ended() {
    let node = Node::new();
    let id = node.kernel("k1", 'a').await;
    node.runtime.exit(&id, 137);
    assert_eq!(node.ps_json(false).await, json!([]));
    let listed = node.ps_json(true).await;
    assert_eq!(
        [
            &listed[0]["state"],
            &listed[0]["exit_code"],
            &listed[0]["pid"]
        ],
        [&json!("exited"), &json!(137), &Value::Null]
    );
    assert!(node.ps(true, false).await.contains("exited (137)"));
}

#[tokio::test]
async fn every_command_names_a_kernel_that_is_not_there() {
    let node = Node::new();
    let mut screen = Screen::default();
    let errors = [
        describe("nobody", &node.runtime, &node.places())
            .await
            .err(),
        exec(exec_args("nobody"), &node.runtime).await.err(),
        logs(&log_of("nobody"), &node.runtime, &mut screen)
            .await
            .err(),
    ];
    for error in errors {
        let text = error.expect("nobody is there").to_string();
        assert!(text.contains("nobody") && text.contains("ps -a"), "{text}");
    }
}

#[tokio::test]
async fn a_program_runs_in_the_kernel_that_a_short_id_means() {
    let node = Node::new();
    let id = node.kernel("k1", 'a').await;
    node.kernel("k2", 'b').await;
    let output = exec(exec_args("aaa"), &node.runtime).await.expect("run");
    assert_eq!((output.code, output.stdout.as_slice()), (0, &b"id -u"[..]));
    let text = exec(exec_args("k"), &node.runtime)
        .await
        .expect_err("two kernels");
    let text = text.to_string();
    assert!(text.contains("k1") && text.contains("k2"), "{text}");
    node.runtime.exit(&id, 0);
    let text = exec(exec_args("k1"), &node.runtime)
        .await
        .expect_err("it is dead");
    assert!(text.to_string().contains("does not run"), "{text}");
}

#[tokio::test]
async fn the_log_is_printed_whole_or_its_end() {
    let node = Node::new();
    let id = node.kernel("k1", 'a').await;
    node.runtime.log(&id, b"one\ntwo\nthree\n");
    assert_eq!(node.logs(log_of("k1")).await, "one\ntwo\nthree\n");
    let tail = LogsArgs {
        tail: Some(2),
        ..log_of("k1")
    };
    assert_eq!(node.logs(tail).await, "two\nthree\n");
    let bytes = LogsArgs {
        bytes: Some(4),
        ..log_of("k1")
    };
    assert_eq!(node.logs(bytes).await, "ree\n");
}

#[tokio::test(start_paused = true)]
async fn a_log_is_followed_until_the_container_ends() {
    let node = Node::new();
    let id = node.kernel("k1", 'a').await;
    node.runtime.log(&id, b"old\nbefore\n");
    let args = LogsArgs {
        follow: true,
        tail: Some(1),
        ..log_of("k1")
    };
    let living = async {
        for n in 0..100 {
            node.runtime.log(&id, format!("line {n}\n").as_bytes());
            tokio::time::sleep(std::time::Duration::from_millis(90)).await;
        }
        node.runtime.log(&id, b"last\n");
        node.runtime.exit(&id, 0);
    };
    let (text, ()) = tokio::join!(node.logs(args), living);
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    assert_eq!(text, format!("before\n{lines}last\n"));
}

#[tokio::test(start_paused = true)]
async fn following_ends_when_the_container_is_removed_or_nobody_reads() {
    let node = Node::new();
    let id = node.kernel("k1", 'a').await;
    let args = LogsArgs {
        follow: true,
        ..log_of("k1")
    };
    node.runtime.log(&id, b"text\n");
    logs(&args, &node.runtime, &mut Gone)
        .await
        .expect("it ends");
    let removing = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        node.runtime.remove(&id).await.expect("removed");
    };
    let (text, ()) = tokio::join!(node.logs(args), removing);
    assert_eq!(text, "text\n");
}
