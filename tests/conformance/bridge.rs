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

#[test]
fn creates_that_take_every_thread_for_blocking_calls_do_not_wait_for_one_another() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build();
    runtime.expect("a runtime").block_on(async {
        let engine = TestEngine::youki().await;
        let specs: Vec<_> = (0..3)
            .map(|_| bridged(&engine, "sleep 1000", free_port()))
            .collect();
        let creates = specs.iter().map(|spec| engine.runtime.create(spec));
        let limit = std::time::Duration::from_secs(60);
        let made = tokio::time::timeout(limit, futures_util::future::join_all(creates)).await;
        for id in made.expect("no create waits for ever") {
            engine
                .runtime
                .remove(&id.expect("made"))
                .await
                .expect("removed");
        }
        engine.close().await;
    });
}
