//! Containers as the Python agent makes them: taken over while they run, and gone without a trace when they are destroyed.

use std::fs;

use backendai_agent::runtime::{
    ContainerState, LABEL_AGENT_ID, LABEL_KERNEL_ID, LABEL_OWNER, OWNER, PortBinding,
};

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
    let text = format!("CID={id}\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={{}}\n");
    fs::write(config.join("resource.txt"), text).expect("a file");
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
