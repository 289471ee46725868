//! A container on the agent's bridge.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

use backendai_agent::runtime::{ContainerSpec, NetworkMode, PortBinding, RuntimeError};

use crate::engine::TestEngine;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    listener.local_addr().expect("address").port()
}

fn bridged(engine: &TestEngine, script: &str, port: u16) -> ContainerSpec {
    let mut spec = engine.shell(script);
    spec.network = NetworkMode::Bridge;
    spec.ports = vec![PortBinding {
        host: port,
        container: 2000,
    }];
    spec
}

/// What the server behind a forwarded port says, once it can be reached.
async fn greeting(port: u16) -> String {
    let mut text = String::new();
    for _ in 0..400 {
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("timeout");
            if matches!(stream.read_to_string(&mut text), Ok(1..)) {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    text
}

#[tokio::test]
async fn rules_that_were_flushed_are_back_after_the_next_list() {
    let engine = TestEngine::youki().await;
    let port = free_port();
    let server = "while true; do echo hello | nc -l -p 2000; done";
    engine.launch(&bridged(&engine, server, port)).await;
    let table = |action: &str| {
        let digest = Sha256::digest(engine.path("run").as_os_str().as_encoded_bytes());
        let name = format!("bai{}", &hex::encode(digest)[..8]);
        let nft = std::process::Command::new("nft")
            .args([action, "table", "ip", &name])
            .output();
        nft.expect("nft").status.success()
    };
    assert!(table("delete"));
    engine.runtime.list().await.expect("list");
    assert!(table("list"));
    assert_eq!(greeting(port).await, "hello\n");
    engine.close().await;
}

#[tokio::test]
async fn a_port_is_forwarded_from_the_loopback_address_and_told() {
    let engine = TestEngine::youki().await;
    let port = free_port();
    let spec = bridged(
        &engine,
        "while true; do echo hello | nc -l -p 2000; done",
        port,
    );
    let id = engine.launch(&spec).await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(info.ports, spec.ports);
    assert!(info.address.is_some());
    let text = greeting(port).await;
    assert_eq!(text, "hello\n");
    engine.close().await;
}

#[tokio::test]
async fn a_container_knows_its_own_name_and_address() {
    let engine = TestEngine::youki().await;
    let spec = bridged(&engine, "cat /etc/hosts; ip -o addr show", free_port());
    let id = engine.launch(&spec).await;
    engine.runtime.wait(&id).await.expect("wait");
    let address = engine
        .runtime
        .inspect(&id)
        .await
        .expect("inspect")
        .address
        .expect("address");
    let log = engine.runtime.logs(&id, 1 << 20).await.expect("logs");
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains(&format!("{address}\tinside\n")), "{log}");
    assert!(log.contains(&format!("inet {address}/")), "{log}");
    engine.close().await;
}

#[tokio::test]
async fn a_port_that_another_container_has_is_refused_and_free_again_after_remove() {
    let engine = TestEngine::youki().await;
    let port = free_port();
    let first = engine.launch(&bridged(&engine, "sleep 1000", port)).await;
    let second = bridged(&engine, "sleep 1000", port);
    let error = engine.runtime.create(&second).await.expect_err("taken");
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&port.to_string())),
        "{error}"
    );
    engine.runtime.remove(&first).await.expect("remove");
    engine.launch(&second).await;
    engine.close().await;
}

#[tokio::test]
async fn a_create_that_fails_after_the_network_gives_it_back() {
    let engine = TestEngine::youki().await;
    let port = free_port();
    let mut bad = bridged(&engine, "true", port);
    bad.args = vec!["/no/such/program".to_owned()];
    engine
        .runtime
        .create(&bad)
        .await
        .expect_err("no such program");
    engine.assert_nothing_left();
    engine.launch(&bridged(&engine, "sleep 1000", port)).await;
    engine.close().await;
}
