//! The bridge and the rules of engines that have none of their own.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use crate::engine::{TestEngine, bridged, free_port, greeting};

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
    assert_eq!(greeting(Ipv4Addr::LOCALHOST, port).await, "hello\n");
    engine.close().await;
}
