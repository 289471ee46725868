//! Who this node is: its id, address and region, from the cloud it runs in or from its host name (19.03, section
//! "Identity").

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one question to a cloud may take.
const TIMEOUT: Duration = Duration::from_millis(200);
/// The longest answer of a cloud that is read.
const ANSWER: u64 = 64 << 10;

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Names the agent in etcd, events and Redis.
    pub id: String,
    /// Address of the host.
    pub host: String,
    /// Region.
    pub region: String,
}

/// Where to look; tests give folders and servers of their own.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Root of `/sys` and `/var`.
    pub root: PathBuf,
    /// The clouds' metadata server, `host:port`.
    pub metadata: String,
    /// Our host name.
    pub host_name: String,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            root: "/".into(),
            metadata: "169.254.169.254:80".to_owned(),
            host_name: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    Amazon,
    Google,
    Azure,
}

impl Identity {
    /// Finds out who we are; what is given wins over what a cloud says. Never fails: what cannot be known gets its
    /// fall-back.
    pub async fn detect(sources: &Sources, host: Option<&str>, region: Option<&str>) -> Self {
        let found = match detect_cloud(&sources.root) {
            Some(cloud) => in_cloud(sources, cloud).await,
            None => Self {
                id: format!("i-{}", sources.host_name),
                host: address_of(&sources.host_name).await,
                region: "local".to_owned(),
            },
        };
        Self {
            id: found.id,
            host: host.map_or(found.host, str::to_owned),
            region: region.map_or(found.region, str::to_owned),
        }
    }
}

fn detect_cloud(root: &Path) -> Option<Cloud> {
    let dmi = |name| {
        let path = root.join("sys/devices/virtual/dmi/id").join(name);
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .to_lowercase()
    };
    let bios = dmi("bios_version");
    let lease = root.join("var/lib/dhcp/dhclient.eth0.leases");
    if dmi("board_vendor").contains("amazon") || bios.contains("amazon") {
        Some(Cloud::Amazon)
    } else if bios.contains("google") {
        Some(Cloud::Google)
    } else if std::fs::read_to_string(lease).is_ok_and(|text| text.contains("unknown-245")) {
        Some(Cloud::Azure)
    } else {
        None
    }
}

async fn in_cloud(sources: &Sources, cloud: Cloud) -> Identity {
    let fallback = format!("i-{}", sources.host_name);
    let local = || "127.0.0.1".to_owned();
    match cloud {
        Cloud::Amazon => {
            let get = |path: &'static str| ask(sources, path, "");
            let zone = get("/latest/meta-data/placement/availability-zone").await;
            let region = zone.map(|zone| {
                zone.trim_end_matches(|c: char| c.is_alphabetic())
                    .to_owned()
            });
            Identity {
                id: get("/latest/meta-data/instance-id")
                    .await
                    .unwrap_or(fallback),
                host: get("/latest/meta-data/local-ipv4")
                    .await
                    .unwrap_or_else(local),
                region: format!("amazon/{}", region.unwrap_or_else(|| "unknown".to_owned())),
            }
        }
        Cloud::Google => {
            let get = |path: &'static str| ask(sources, path, "Metadata-Flavor: Google\r\n");
            let zone = get("/computeMetadata/v1/instance/zone").await;
            let region = zone.and_then(|zone| {
                let name = zone.rsplit('/').next()?;
                Some(
                    name.rsplit_once('-')
                        .map_or(name, |(region, _)| region)
                        .to_owned(),
                )
            });
            let ip = "/computeMetadata/v1/instance/network-interfaces/0/ip";
            Identity {
                id: get("/computeMetadata/v1/instance/id")
                    .await
                    .unwrap_or(fallback),
                host: get(ip).await.unwrap_or_else(local),
                region: format!("google/{}", region.unwrap_or_else(|| "unknown".to_owned())),
            }
        }
        Cloud::Azure => {
            let path = "/metadata/instance?version=2017-03-01";
            let answer = ask(sources, path, "Metadata: true\r\n").await;
            let json: serde_json::Value = answer
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default();
            let text = |pointer| json.pointer(pointer)?.as_str().map(str::to_owned);
            let ip = "/network/interface/0/ipv4/ipaddress/0/ipaddress";
            let location = text("/compute/location").unwrap_or_else(|| "unknown".to_owned());
            Identity {
                id: text("/compute/vmId").unwrap_or(fallback),
                host: text(ip).unwrap_or_else(local),
                region: format!("azure/{location}"),
            }
        }
    }
}

/// The metadata server's answer to one question, without white space around it; `None` when it does not answer in
/// time or has nothing to say.
async fn ask(sources: &Sources, path: &str, header: &str) -> Option<String> {
    let get = async {
        let mut stream = TcpStream::connect(&sources.metadata).await.ok()?;
        let host = &sources.metadata;
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n{header}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.take(ANSWER).read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?;
        (status == "200").then(|| body.trim().to_owned())
    };
    let answer = tokio::time::timeout(TIMEOUT, get).await.ok()??;
    (!answer.is_empty()).then_some(answer)
}

/// The first IPv4 address that the name has, else 127.0.0.1.
async fn address_of(name: &str) -> String {
    let mut found = None;
    if let Ok(addresses) = tokio::net::lookup_host((name, 0)).await {
        found = addresses.map(|address| address.ip()).find(IpAddr::is_ipv4);
    }
    found.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn sources(root: &Path, metadata: String) -> Sources {
        Sources {
            root: root.to_owned(),
            metadata,
            host_name: "localhost".to_owned(),
        }
    }

    fn dmi(root: &Path, name: &str, text: &str) {
        let folder = root.join("sys/devices/virtual/dmi/id");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(name), text).expect("a file");
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the server ends with its test's runtime"
    )]
    /// Answers each request by what `reply` makes of its first line.
    async fn metadata(reply: fn(&str) -> String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        drop(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..count]).into_owned();
                let body = reply(&request);
                let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}\n");
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }));
        address
    }

    #[tokio::test]
    async fn on_premises_the_host_name_decides() {
        let root = tempfile::tempdir().expect("a folder");
        let sources = sources(root.path(), "127.0.0.1:1".to_owned());
        let found = Identity::detect(&sources, None, None).await;
        let expected = Identity {
            id: "i-localhost".into(),
            host: "127.0.0.1".into(),
            region: "local".into(),
        };
        assert_eq!(found, expected);
        let given = Identity::detect(&sources, Some("10.0.0.1"), Some("mars")).await;
        assert_eq!(
            (given.host.as_str(), given.region.as_str()),
            ("10.0.0.1", "mars")
        );
    }

    #[tokio::test]
    async fn amazon_says_who_we_are() {
        let root = tempfile::tempdir().expect("a folder");
        dmi(root.path(), "board_vendor", "Amazon EC2\n");
        let server = metadata(|request| match request.split(' ').nth(1) {
            Some("/latest/meta-data/instance-id") => "i-0abc".to_owned(),
            Some("/latest/meta-data/local-ipv4") => "10.1.2.3".to_owned(),
            _ => "ap-northeast-2c".to_owned(),
        });
        let found = Identity::detect(&sources(root.path(), server.await), None, None).await;
        let expected = Identity {
            id: "i-0abc".into(),
            host: "10.1.2.3".into(),
            region: "amazon/ap-northeast-2".into(),
        };
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn google_is_asked_with_its_header() {
        let root = tempfile::tempdir().expect("a folder");
        dmi(root.path(), "bios_version", "Google\n");
        let server = metadata(|request| {
            assert!(request.contains("Metadata-Flavor: Google"));
            match request.split(' ').nth(1) {
                Some("/computeMetadata/v1/instance/zone") => {
                    "projects/1/zones/asia-east1-b".to_owned()
                }
                Some("/computeMetadata/v1/instance/id") => "77".to_owned(),
                _ => "10.0.0.9".to_owned(),
            }
        });
        let found = Identity::detect(&sources(root.path(), server.await), None, None).await;
        assert_eq!(
            (found.id.as_str(), found.region.as_str()),
            ("77", "google/asia-east1")
        );
    }

    #[tokio::test]
    async fn azure_is_known_by_its_lease() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("var/lib/dhcp");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("dhclient.eth0.leases"), "option unknown-245 x;")
            .expect("a file");
        let server = metadata(|_| {
            r#"{"compute":{"vmId":"v1","location":"koreacentral"},
                "network":{"interface":[{"ipv4":{"ipaddress":[{"ipaddress":"10.0.0.4"}]}}]}}"#
                .to_owned()
        });
        let found = Identity::detect(&sources(root.path(), server.await), None, None).await;
        let expected = Identity {
            id: "v1".into(),
            host: "10.0.0.4".into(),
            region: "azure/koreacentral".into(),
        };
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn a_silent_cloud_leaves_the_fall_backs() {
        let root = tempfile::tempdir().expect("a folder");
        dmi(root.path(), "board_vendor", "Amazon EC2\n");
        // Accepts connections and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("bound").to_string();
        let found = Identity::detect(&sources(root.path(), address), None, None).await;
        let expected = Identity {
            id: "i-localhost".into(),
            host: "127.0.0.1".into(),
            region: "amazon/unknown".into(),
        };
        assert_eq!(found, expected);
    }
}
