//! A container's port, as the host reaches it.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use backendai_agent::runtime::{ContainerSpec, NetworkMode, PortBinding};

use super::TestEngine;

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    listener.local_addr().expect("address").port()
}

/// A container on the bridge whose port 2000 is forwarded.
pub fn bridged(engine: &TestEngine, script: &str, port: u16) -> ContainerSpec {
    let mut spec = engine.shell(script);
    spec.network = NetworkMode::Bridge;
    spec.ports = vec![PortBinding {
        host: port,
        container: 2000,
    }];
    spec
}

/// What the server behind a port says, once it can be reached.
pub async fn greeting(address: Ipv4Addr, port: u16) -> String {
    let mut text = String::new();
    for _ in 0..400 {
        if let Ok(mut stream) = TcpStream::connect((address, port)) {
            let patience = Some(Duration::from_secs(10));
            stream.set_read_timeout(patience).expect("timeout");
            if matches!(stream.read_to_string(&mut text), Ok(1..)) {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    text
}
