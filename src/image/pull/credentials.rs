//! Credentials that `docker login` left behind.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::runtime::RegistryAuth;

/// Docker's names for its own registry.
const HUB_KEYS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
}

/// Credentials for a registry from `~/.docker/config.json`.
pub(super) fn of_home(registry: &str) -> Option<RegistryAuth> {
    of_file(&std::env::home_dir()?.join(".docker/config.json"), registry)
}

fn of_file(path: &Path, registry: &str) -> Option<RegistryAuth> {
    let text = std::fs::read(path).ok()?;
    let config: Config = serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot read the registries' credentials"))
        .ok()?;
    let same = |key: &str| {
        let host = key
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        host == registry || (HUB_KEYS.contains(&host) && HUB_KEYS.contains(&registry))
    };
    let (_, entry) = config.auths.iter().find(|(key, _)| same(key))?;
    let plain = String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok()?;
    let (username, password) = plain.split_once(':')?;
    Some(RegistryAuth {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let auth = STANDARD.encode("me:se:cret");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"127.0.0.1:5000":{{"auth":"{auth}"}},"x.io":{{}}}}}}"#
        );
        std::fs::write(&path, text).unwrap();
        for registry in ["registry-1.docker.io", "127.0.0.1:5000"] {
            let found = of_file(&path, registry).unwrap();
            assert_eq!(
                (found.username.as_str(), found.password.as_str()),
                ("me", "se:cret")
            );
        }
        assert_eq!(of_file(&path, "127.0.0.1:5001"), None);
        assert_eq!(of_file(&path, "x.io"), None);
    }
}
