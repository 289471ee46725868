//! Networks and ports.

use std::net::{Ipv4Addr, TcpListener};

use backendai_agent::runtime::{NetworkMode, RuntimeError};

use crate::engine::{TestEngine, bridged, free_port, greeting, own_namespace};

contract! {
    with fake {
        a_port_that_another_container_has_is_refused_and_free_again_after_remove
        a_create_that_fails_after_the_network_gives_it_back
    }
    without fake {
        // The fake has no networks: it keeps who has which port, and forwards nothing.
        the_hosts_network_is_shared_only_when_asked
        without_a_network_there_is_only_the_loopback_interface
        a_port_is_forwarded_from_the_loopback_address_and_told
        a_container_knows_its_own_name_and_address
        a_container_reaches_the_host_at_its_gateway
        containers_on_the_bridge_have_addresses_of_their_own
        another_agent_finds_ports_and_addresses_as_they_were
    }
}

/// A server that says hello to everyone.
const SERVER: &str = "while true; do echo hello | nc -l -p 2000; done";

async fn the_hosts_network_is_shared_only_when_asked(engine: TestEngine) {
    let host = own_namespace("net") + "\n";
    let mut spec = engine.shell("readlink /proc/self/ns/net");
    assert_ne!(engine.output_of(&spec).await, host);
    spec.network = NetworkMode::Host;
    assert_eq!(engine.output_of(&spec).await, host);
    engine.close().await;
}

async fn without_a_network_there_is_only_the_loopback_interface(engine: TestEngine) {
    let log = engine
        .output("ip -o link | wc -l; ip -o link | grep -c lo:; ip -o addr | grep -c 127.0.0.1/8")
        .await;
    assert_eq!(log, "1\n1\n1\n");
    engine.close().await;
}

async fn a_port_is_forwarded_from_the_loopback_address_and_told(engine: TestEngine) {
    let port = free_port();
    let spec = bridged(&engine, SERVER, port);
    let id = engine.launch(&spec).await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    assert_eq!(info.ports, spec.ports);
    assert!(info.address.is_some());
    assert_eq!(greeting(Ipv4Addr::LOCALHOST, port).await, "hello\n");
    engine.close().await;
}

async fn a_container_knows_its_own_name_and_address(engine: TestEngine) {
    let script = "cat /etc/hosts; ip -o addr show; sleep 1000";
    let id = engine.launch(&bridged(&engine, script, free_port())).await;
    engine.until_logged(&id, "inet ").await;
    let info = engine.runtime.inspect(&id).await.expect("inspect");
    let address = info.address.expect("address");
    engine.until_logged(&id, &format!("inet {address}/")).await;
    engine
        .until_logged(&id, &format!("{address}\tinside\n"))
        .await;
    engine.close().await;
}

async fn a_container_reaches_the_host_at_its_gateway(engine: TestEngine) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    let port = listener.local_addr().expect("address").port();
    let answer = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(b"from outside\n").expect("write");
    });
    let script =
        format!("nc $(ip route | grep ^default | tr -s ' ' '\\n' | sed -n 3p) {port} < /dev/null");
    let log = engine
        .output_of(&bridged(&engine, &script, free_port()))
        .await;
    assert_eq!(log, "from outside\n");
    answer.join().expect("answered");
    engine.close().await;
}

async fn containers_on_the_bridge_have_addresses_of_their_own(engine: TestEngine) {
    let one = engine.launch(&bridged(&engine, SERVER, free_port())).await;
    let two = engine.launch(&bridged(&engine, SERVER, free_port())).await;
    let mut addresses = Vec::new();
    for id in [&one, &two] {
        let info = engine.runtime.inspect(id).await.expect("inspect");
        addresses.push(info.address.expect("address"));
    }
    assert_ne!(addresses[0], addresses[1]);
    for address in addresses {
        assert_eq!(greeting(address, 2000).await, "hello\n");
    }
    engine.close().await;
}

async fn a_port_that_another_container_has_is_refused_and_free_again_after_remove(
    engine: TestEngine,
) {
    let port = free_port();
    let first = engine.launch(&bridged(&engine, "sleep 1000", port)).await;
    let second = bridged(&engine, "sleep 1000", port);
    let error = engine.refused(&second).await;
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&port.to_string())),
        "{error}"
    );
    engine.runtime.remove(&first).await.expect("remove");
    engine.launch(&second).await;
    engine.close().await;
}

async fn a_create_that_fails_after_the_network_gives_it_back(engine: TestEngine) {
    let port = free_port();
    let mut bad = bridged(&engine, "true", port);
    bad.args = vec!["/no/such/program".to_owned()];
    engine.refused(&bad).await;
    engine.assert_nothing_left();
    engine.launch(&bridged(&engine, "sleep 1000", port)).await;
    engine.close().await;
}

async fn another_agent_finds_ports_and_addresses_as_they_were(mut engine: TestEngine) {
    let port = free_port();
    let id = engine.launch(&bridged(&engine, SERVER, port)).await;
    let before = engine.runtime.inspect(&id).await.expect("inspect");
    engine.reopen().await;
    assert_eq!(engine.runtime.inspect(&id).await.expect("inspect"), before);
    assert_eq!(greeting(Ipv4Addr::LOCALHOST, port).await, "hello\n");
    engine.close().await;
}
