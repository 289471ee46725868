//! What a kernel is given: user, environment, configuration, limits; and what is counted of it.

use std::time::Duration;

use backendai_agent::agent::request::KernelConfig;
use backendai_agent::manager::Node;

use crate::node::{TestNode, slots};

on_every_engine! {
    a_kernel_has_its_user_folder_and_environment
    a_kernel_knows_what_it_was_given
    a_program_that_takes_too_much_memory_dies_and_the_kernel_lives_on
    what_a_kernel_uses_is_counted
    a_kernel_reaches_nothing_of_the_host
}

async fn a_kernel_has_its_user_folder_and_environment(node: TestNode) {
    let config = KernelConfig {
        environ: vec![("GIVEN".to_owned(), "a b=c".to_owned())],
        ..node.config()
    };
    node.try_create("k1", config).await.expect("created");
    // An image that does not ask for the user's own id has one of its own.
    let output = node
        .output("k1", "id -u; pwd; echo $GIVEN; echo $HOME")
        .await;
    assert_eq!(output, "9001\n/home/work\na b=c\n/home/work\n");
    node.close().await;
}

async fn a_kernel_knows_what_it_was_given(node: TestNode) {
    let created = node.create("k1").await;
    let text = node.output("k1", "cat /home/config/resource.txt").await;
    assert!(
        text.contains("CID=") && text.contains("SCRATCH_SIZE="),
        "{text}"
    );
    assert!(text.contains(&created.container), "{text}");
    node.close().await;
}

async fn a_program_that_takes_too_much_memory_dies_and_the_kernel_lives_on(node: TestNode) {
    let config = KernelConfig {
        slots: slots("1", 48 << 20),
        ..node.config()
    };
    node.try_create("k1", config).await.expect("created");
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo $?";
    assert_eq!(node.output("k1", script).await, "137\n");
    assert_eq!(node.output("k1", "echo lives").await, "lives\n");
    node.close().await;
}

async fn what_a_kernel_uses_is_counted(node: TestNode) {
    node.create("k1").await;
    node.output("k1", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        .await;
    for _ in 0..100 {
        if node
            .agent
            .stats()
            .kernels
            .iter()
            .any(|(id, _)| *id == node.id("k1"))
        {
            return node.close().await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!(
        "no statistics of the kernel: {:?}",
        node.agent.stats().kernels
    );
}

async fn a_kernel_reaches_nothing_of_the_host(node: TestNode) {
    node.create("k1").await;
    let script = "ls /home; ls /opt/backend.ai/bin | head -n 1 | wc -l; touch /opt/backend.ai/x 2>&1 | grep -c -e Read-only -e Permission";
    assert_eq!(
        node.output("k1", &format!("{script}; true")).await,
        "config\nwork\n1\n1\n"
    );
    node.close().await;
}
