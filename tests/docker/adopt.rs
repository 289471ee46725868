//! Containers as the Python agent makes them: taken over while they run, and gone without a trace when they are destroyed.

use std::fs;
use std::process::{Command, Stdio};

use backendai_agent::agent::request::KernelId;
use backendai_agent::kernel::mark;
use backendai_agent::kernel::scratch::ScratchRoot;
use backendai_agent::runtime::{
    ContainerState, LABEL_AGENT_ID, LABEL_KERNEL_ID, LABEL_OWNER, OWNER, PortBinding,
};

use serde_json::{Value, json};

use crate::node::{IMAGE, Node};

const KERNEL: &str = "11111111-2222-3333-4444-555555555555";

/// Makes a kernel as the Python agent does: an env container with a volume, and a container beside it that has neither
/// labels nor anything else of ours.
fn python_kernel(node: &Node, kernel: &str) -> String {
    let env = format!("kernel-env.{kernel}");
    node.docker(&[
        "create",
        "--name",
        &env,
        "-v",
        "/opt/backend.ai",
        IMAGE,
        "true",
    ]);
    let name = format!("kernel.busybox.{kernel}");
    node.docker(&[
        "run",
        "-dit",
        "--init",
        "--name",
        &name,
        "--volumes-from",
        &env,
        "-p",
        "30211:2000",
        "-p",
        "30212:2001",
        IMAGE,
        "sh",
        "-c",
        "echo ready; sleep 1000",
    ])
}

fn write_scratch(node: &Node, kernel: &str, id: &str) {
    let config = node.dir.path().join("scratch").join(kernel).join("config");
    fs::create_dir_all(&config).expect("a folder");
    let text = format!(
        "CID={id}\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={{\"mem\": \"536870912\", \"cpu\": \"1\"}}\n\
         IDLE_TIMEOUT=600\nCPU_SHARES=0:1\nMEM_SHARES=root:512m\n"
    );
    fs::write(config.join("resource.txt"), text).expect("a file");
}

/// An operator's command on this node.
fn operate(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
    let (endpoint, folder) = (node.daemon.endpoint(), node.dir.path());
    command
        .env("BACKEND_RUNTIME", "docker")
        .env("BACKEND_RUNTIME_ENDPOINT", &endpoint)
        .env("BACKEND_SCRATCH_ROOT", folder.join("scratch"))
        .env("BACKEND_STATE_DIR", folder.join("state"))
        .env("BACKEND_RUN_DIR", folder.join("run"))
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Its exit status, and what it prints.
fn told(mut command: Command) -> (i32, String, String) {
    let output = command.output().expect("started");
    let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).expect("text"));
    (output.status.code().expect("an end of its own"), out, err)
}

fn told_json(node: &Node, args: &[&str]) -> Value {
    let (code, out, err) = told(operate(node, args));
    assert_eq!(code, 0, "{args:?}: {err}");
    serde_json::from_str(&out).expect("JSON")
}

#[tokio::test]
async fn an_operator_works_with_a_kernel_of_the_python_agent_where_no_agent_runs() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let id = python_kernel(&node, KERNEL);
    assert_eq!(
        told_json(&node, &["ps", "-a", "--json"]),
        json!([]),
        "a stranger's"
    );
    write_scratch(&node, KERNEL, &id);
    let listed = told_json(&node, &["ps", "--json"]);
    let mut wanted = json!({
        "kernel_id": KERNEL,
        "container_id": id,
        "name": format!("kernel.busybox.{KERNEL}"),
        "image": IMAGE,
        "state": "running",
        "exit_code": null,
        "oom_killed": null,
        "pid": listed[0]["pid"],
        "started_at": listed[0]["started_at"],
        "address": listed[0]["address"],
        "ports": [{"host": 30211, "container": 2000}, {"host": 30212, "container": 2001}],
        "agent_id": null,
        "slots": {"mem": "536870912", "cpu": "1"},
    });
    assert_eq!(listed, json!([wanted]));
    assert!(listed[0]["pid"].is_number() && listed[0]["started_at"].is_number());
    let (_, table, _) = told(operate(&node, &["ps"]));
    for word in [
        &KERNEL[..12],
        &id[..12],
        "running",
        "30211->2000",
        "mem=512m cpu=1",
    ] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let inspected = told_json(&node, &["inspect", &KERNEL[..8]]);
    let scratch = node.dir.path().join("scratch").join(KERNEL);
    wanted["labels"] = json!({
        LABEL_OWNER: OWNER,
        LABEL_KERNEL_ID: KERNEL,
        "ai.backend.kernelspec": "1",
    });
    wanted["cgroup"] = inspected["cgroup"].clone();
    wanted["scratch"] = json!(scratch);
    assert_eq!(inspected, wanted);
    assert!(inspected["cgroup"].is_string() && inspected["address"].is_string());

    let script = "echo $A $(id -u):$(id -g) $(pwd); echo trouble >&2; exit 7";
    let exec = [
        "exec",
        &id[..12],
        "--user",
        "5:6",
        "--workdir",
        "/tmp",
        "--env",
        "A=b c",
    ];
    let entered = told(operate(
        &node,
        &[&exec[..], &["--", "sh", "-c", script]].concat(),
    ));
    assert_eq!(
        entered,
        (7, "b c 5:6 /tmp\n".to_owned(), "trouble\n".to_owned())
    );

    let all = (0, "ready\n".to_owned(), String::new());
    assert_eq!(told(operate(&node, &["logs", KERNEL])), all);
    let mut follow = operate(&node, &["logs", "-f", KERNEL]);
    let follow = follow.stdout(Stdio::piped()).spawn().expect("started");
    node.docker(&["kill", &id]);
    let followed = follow
        .wait_with_output()
        .expect("it ends with the container");
    assert!(followed.status.success());
    assert_eq!(followed.stdout, b"ready\n");

    assert_eq!(told_json(&node, &["ps", "--json"]), json!([]));
    let dead = &told_json(&node, &["ps", "-a", "--json"])[0];
    assert_eq!(
        (&dead["state"], &dead["exit_code"]),
        (&json!("exited"), &json!(137))
    );
    assert_eq!(told(operate(&node, &["logs", KERNEL])), all);
    let (code, _, error) = told(operate(&node, &["exec", KERNEL, "--", "true"]));
    assert!(code == 1 && error.contains("does not run"), "{error}");
}

#[tokio::test]
async fn an_operator_sees_which_agent_has_taken_a_kernel_over() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let id = python_kernel(&node, KERNEL);
    write_scratch(&node, KERNEL, &id);
    let root = ScratchRoot::new(node.dir.path().join("scratch"), false);
    let scratch = root.open(&KernelId::parse(KERNEL).expect("an id"));
    mark::set(&scratch.expect("its folders"), "i-node");
    assert_eq!(told_json(&node, &["inspect", KERNEL])["agent_id"], "i-node");
    let (_, table, _) = told(operate(&node, &["ps"]));
    assert!(table.contains("i-node"), "{table}");
}

#[tokio::test]
async fn a_kernel_of_the_python_agent_is_ours_while_it_runs_and_leaves_nothing() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let id = python_kernel(&node, KERNEL);
    write_scratch(&node, KERNEL, &id);
    // Without the order to adopt it is a stranger.
    assert_eq!(node.runtime.list().await.expect("list"), []);
    let runtime = node.adopting("i-node").await;
    let listed = runtime.list().await.expect("list");
    assert_eq!(listed.len(), 1, "{listed:?}");
    let info = &listed[0];
    assert_eq!(
        (info.id.0.as_str(), info.state),
        (id.as_str(), ContainerState::Running)
    );
    let label = |name: &str| info.labels.get(name).map(String::as_str);
    assert_eq!(label(LABEL_OWNER), Some(OWNER));
    assert_eq!(label(LABEL_AGENT_ID), Some("i-node"));
    assert_eq!(label(LABEL_KERNEL_ID), Some(KERNEL));
    assert_eq!(
        label("ai.backend.kernelspec"),
        Some("1"),
        "the image's are there"
    );
    let ports =
        [(30211, 2000), (30212, 2001)].map(|(host, container)| PortBinding { host, container });
    assert_eq!(info.ports, ports);
    assert_eq!(runtime.inspect(&info.id).await.expect("inspect"), *info);
    assert_eq!(runtime.logs(&info.id, 100).await.expect("logs"), b"ready\n");
    runtime.remove(&info.id).await.expect("remove");
    assert_eq!(
        node.docker(&["ps", "-aq"]),
        "",
        "the env container goes too"
    );
    assert_eq!(node.docker(&["volume", "ls", "-q"]), "", "and its volume");
}

#[tokio::test]
async fn a_kernel_that_no_scratch_folder_of_ours_names_is_a_strangers() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let id = python_kernel(&node, KERNEL);
    let runtime = node.adopting("i-node").await;
    assert_eq!(runtime.list().await.expect("list"), []);
    write_scratch(&node, KERNEL, "None");
    assert_eq!(runtime.list().await.expect("list"), []);
    // One of ours keeps its name and labels, whoever looks.
    let own = node.launch(&node.shell("sleep 1000")).await;
    let listed = runtime.list().await.expect("list");
    assert_eq!(
        listed.iter().map(|info| &info.id).collect::<Vec<_>>(),
        [&own]
    );
    runtime.remove(&own).await.expect("remove");
    assert_eq!(
        node.docker(&["ps", "-q", "--no-trunc"]),
        id,
        "it is left alone"
    );
}
