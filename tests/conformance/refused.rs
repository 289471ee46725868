//! Requests that are wrong: each is refused with a text that names the part, and leaves nothing.

use backendai_agent::runtime::{
    ContainerSpec, DeviceNode, Mount, MountKind, NetworkMode, PortBinding, RuntimeError,
};

use crate::engine::TestEngine;

async fn refused(change: impl FnOnce(&TestEngine, &mut ContainerSpec), names: &str) {
    let engine = TestEngine::youki().await;
    let mut spec = engine.shell("true");
    change(&engine, &mut spec);
    let error = engine.runtime.create(&spec).await.expect_err("wrong");
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(names)),
        "{error:?}"
    );
    assert!(engine.runtime.list().await.expect("list").is_empty());
    engine.assert_nothing_left();
}

#[tokio::test]
async fn a_mount_source_that_is_not_there() {
    let mount = Mount {
        kind: MountKind::Bind("/no/such/folder".into()),
        target: "/mnt".into(),
        read_only: true,
    };
    refused(|_, spec| spec.mounts = vec![mount], "/no/such/folder").await;
}

#[tokio::test]
async fn a_mount_target_that_is_not_absolute() {
    let mount = Mount {
        kind: MountKind::Tmpfs(1 << 20),
        target: "mnt".into(),
        read_only: true,
    };
    refused(|_, spec| spec.mounts = vec![mount], "mnt").await;
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    refused(
        |_, spec| spec.args = vec!["/no/such/program".to_owned()],
        "/no/such/program",
    )
    .await;
}

#[tokio::test]
async fn a_program_that_is_not_executable() {
    refused(
        |_, spec| spec.args = vec!["/etc/hosts".to_owned()],
        "/etc/hosts",
    )
    .await;
}

#[tokio::test]
async fn no_program() {
    refused(|_, spec| spec.args.clear(), "no program").await;
}

#[tokio::test]
async fn an_argument_with_a_zero_byte() {
    refused(|_, spec| spec.args.push("a\0b".to_owned()), "zero byte").await;
}

#[tokio::test]
async fn a_variable_without_a_name() {
    refused(
        |_, spec| spec.env.push(("A=B".to_owned(), String::new())),
        "A=B",
    )
    .await;
}

#[tokio::test]
async fn a_working_folder_that_is_not_absolute() {
    refused(|_, spec| spec.cwd = "work".into(), "work").await;
}

#[tokio::test]
async fn an_id_that_is_a_path() {
    refused(|_, spec| spec.id.0 = "../escape".to_owned(), "../escape").await;
}

#[tokio::test]
async fn an_unknown_capability() {
    refused(
        |_, spec| spec.capabilities = vec!["CAP_FLY".to_owned()],
        "CAP_FLY",
    )
    .await;
}

#[tokio::test]
async fn a_device_of_an_unknown_kind() {
    let node = DeviceNode {
        path: "/dev/x".into(),
        kind: 'x',
        major: 1,
        minor: 1,
        mode: 0,
        access: "r".into(),
    };
    refused(|_, spec| spec.devices = vec![node], "/dev/x").await;
}

#[tokio::test]
async fn ports_without_a_network_of_its_own() {
    let port = PortBinding {
        host: 1,
        container: 1,
    };
    refused(
        |_, spec| {
            spec.network = NetworkMode::Host;
            spec.ports = vec![port];
        },
        "ports",
    )
    .await;
}

#[tokio::test]
async fn a_name_that_another_container_has_until_that_is_gone() {
    let engine = TestEngine::youki().await;
    let (one, mut two) = (engine.shell("sleep 1000"), engine.shell("sleep 1000"));
    two.name.clone_from(&one.name);
    let (first, second) = tokio::join!(engine.runtime.create(&one), engine.runtime.create(&two));
    let (made, error, refused) = match (first, second) {
        (Ok(made), Err(error)) => (made, error, two),
        (Err(error), Ok(made)) => (made, error, one),
        both => panic!("one of two has the name: {both:?}"),
    };
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&refused.name)),
        "{error:?}"
    );
    engine.runtime.remove(&made).await.expect("remove");
    engine.runtime.create(&refused).await.expect("it is free");
    engine.close().await;
}
