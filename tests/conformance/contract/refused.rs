//! Requests that are wrong: each is refused with a text that names the part, and leaves nothing.

use backendai_agent::runtime::{
    ContainerSpec, DeviceNode, Mount, MountKind, NetworkMode, PortBinding, RuntimeError,
};

use crate::engine::TestEngine;

contract! {
    with fake {
        a_mount_source_that_is_not_there
        a_mount_target_that_is_not_absolute
        a_program_that_is_not_there
        a_program_that_is_not_executable
        no_program
        an_argument_with_a_zero_byte
        a_variable_without_a_name
        a_working_folder_that_is_not_absolute
        an_id_that_is_a_path
        an_unknown_capability
        a_device_of_an_unknown_kind
        ports_without_a_network_of_its_own
        an_image_that_is_not_there
    }
}

/// `create` refuses it, or `start` where only running it shows that it is wrong.
async fn refused(engine: TestEngine, change: impl FnOnce(&mut ContainerSpec), names: &str) {
    let mut spec = engine.shell("true");
    change(&mut spec);
    let error = engine.refused(&spec).await;
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(names)),
        "{error:?}"
    );
    assert!(engine.runtime.list().await.expect("list").is_empty());
    engine.assert_nothing_left();
    engine.close().await;
}

async fn a_mount_source_that_is_not_there(engine: TestEngine) {
    let mount = Mount {
        kind: MountKind::Bind("/no/such/folder".into()),
        target: "/mnt".into(),
        read_only: true,
    };
    refused(engine, |spec| spec.mounts = vec![mount], "/no/such/folder").await;
}

async fn a_mount_target_that_is_not_absolute(engine: TestEngine) {
    let mount = Mount {
        kind: MountKind::Tmpfs(1 << 20),
        target: "mnt".into(),
        read_only: true,
    };
    refused(engine, |spec| spec.mounts = vec![mount], "mnt").await;
}

async fn a_program_that_is_not_there(engine: TestEngine) {
    let args = vec!["/no/such/program".to_owned()];
    refused(engine, |spec| spec.args = args, "/no/such/program").await;
}

async fn a_program_that_is_not_executable(engine: TestEngine) {
    let args = vec!["/etc/hosts".to_owned()];
    refused(engine, |spec| spec.args = args, "/etc/hosts").await;
}

async fn no_program(engine: TestEngine) {
    refused(engine, |spec| spec.args.clear(), "no program").await;
}

async fn an_argument_with_a_zero_byte(engine: TestEngine) {
    refused(
        engine,
        |spec| spec.args.push("a\0b".to_owned()),
        "zero byte",
    )
    .await;
}

async fn a_variable_without_a_name(engine: TestEngine) {
    let variable = ("A=B".to_owned(), String::new());
    refused(engine, |spec| spec.env.push(variable), "A=B").await;
}

async fn a_working_folder_that_is_not_absolute(engine: TestEngine) {
    refused(engine, |spec| spec.cwd = "work".into(), "work").await;
}

async fn an_id_that_is_a_path(engine: TestEngine) {
    refused(
        engine,
        |spec| spec.id.0 = "../escape".to_owned(),
        "../escape",
    )
    .await;
}

async fn an_unknown_capability(engine: TestEngine) {
    let capabilities = vec!["CAP_FLY".to_owned()];
    refused(engine, |spec| spec.capabilities = capabilities, "CAP_FLY").await;
}

async fn a_device_of_an_unknown_kind(engine: TestEngine) {
    let node = DeviceNode {
        path: "/dev/x".into(),
        kind: 'x',
        major: 1,
        minor: 1,
        mode: 0,
        access: "r".into(),
    };
    refused(engine, |spec| spec.devices = vec![node], "/dev/x").await;
}

async fn ports_without_a_network_of_its_own(engine: TestEngine) {
    let port = PortBinding {
        host: 1,
        container: 1,
    };
    let change = |spec: &mut ContainerSpec| {
        spec.network = NetworkMode::Host;
        spec.ports = vec![port];
    };
    refused(engine, change, "ports").await;
}

async fn an_image_that_is_not_there(engine: TestEngine) {
    let mut spec = engine.shell("true");
    spec.image = format!("sha256:{}", "0".repeat(64));
    let error = engine.refused(&spec).await;
    assert!(
        matches!(&error, RuntimeError::ImageMissing(name) if *name == spec.image),
        "{error:?}"
    );
    engine.assert_nothing_left();
    engine.close().await;
}
