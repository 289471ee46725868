//! dockerd over TCP: with certificates of both sides, without, and with wrong ones.

use std::path::Path;
use std::process::Command;

use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::runtime::{Result, RuntimeError};

use crate::daemons::{Kind, OwnDaemon};

/// Makes an authority, and a key and a certificate of it for either side.
fn make_certificates(folder: &Path) {
    let openssl = |args: &str| {
        let made = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(folder)
            .output()
            .expect("openssl is installed");
        let error = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {args}: {error}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca-key.pem -out ca.pem -subj /CN=authority"
    ));
    for (side, usage) in [("server-", "serverAuth"), ("", "clientAuth")] {
        let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n");
        std::fs::write(folder.join("extensions"), extensions).expect("a file");
        openssl(&format!(
            "req -new {key} -keyout {side}key.pem -out request -subj /CN=x"
        ));
        openssl(&format!(
            "x509 -req -in request -CA ca.pem -CAkey ca-key.pem -CAcreateserial -extfile extensions -out {side}cert.pem"
        ));
    }
}

async fn version(endpoint: &str, certificates: Option<&Path>) -> Result<String> {
    let config = EngineConfig {
        endpoint: Some(endpoint.to_owned()),
        tls: certificates.map(Path::to_owned),
        ..EngineConfig::default()
    };
    let engine = backends::open(RuntimeKind::Docker, config).await?;
    Ok(engine.runtime.info().await?.version)
}

#[tokio::test]
async fn dockerd_is_reached_over_tls_by_those_whom_it_knows() {
    let folder = tempfile::tempdir().expect("a folder");
    make_certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let options = [
        "-H=tcp://127.0.0.1:22376".to_owned(),
        "--tlsverify".to_owned(),
        format!("--tlscacert={}", path("ca.pem")),
        format!("--tlscert={}", path("server-cert.pem")),
        format!("--tlskey={}", path("server-key.pem")),
    ];
    let options = options.each_ref().map(String::as_str);
    let _daemon = match OwnDaemon::start(Kind::Docker, &options) {
        Ok(daemon) => daemon,
        Err(lack) => return println!("skipped: {lack}"),
    };
    let endpoint = "tcp://127.0.0.1:22376";
    let told = version(endpoint, Some(folder.path()))
        .await
        .expect("it answers");
    assert!(!told.is_empty());
    let plain = version(endpoint, None).await.expect_err("it wants TLS");
    let stranger = tempfile::tempdir().expect("a folder");
    make_certificates(stranger.path());
    let unknown = version(endpoint, Some(stranger.path()))
        .await
        .expect_err("another authority");
    for error in [&plain, &unknown] {
        assert!(
            matches!(
                error,
                RuntimeError::Unavailable { .. } | RuntimeError::Engine { .. }
            ),
            "{error:?}"
        );
    }
    let empty = tempfile::tempdir().expect("a folder");
    let error = version(endpoint, Some(empty.path()))
        .await
        .expect_err("no certificates");
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains("ca.pem")),
        "{error:?}"
    );
}
