//! Credentials that `docker login` left behind: in its configuration, or with the programs that it names there.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::reference::ImageRef;
use crate::runtime::RegistryAuth;

/// Docker's names for its own registry.
const HUB_KEYS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];
/// The name by which programs know it.
const HUB_URL: &str = "https://index.docker.io/v1/";
/// A helper program that takes longer waits for a person, who is not there.
const HELPER: Duration = Duration::from_secs(20);
/// A helper's user name when its secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a registry may be told of its user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User name and password.
    Password(RegistryAuth),
    /// A refresh token, which the registry's token server exchanges.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

impl Credentials {
    /// User name and password, with something in them.
    fn password(username: &str, password: &str) -> Option<Self> {
        let given = !username.is_empty() && !password.is_empty();
        given.then(|| {
            Self::Password(RegistryAuth {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        })
    }
}

/// Docker's configuration, as far as it tells of credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The answer of a helper program.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Credentials for an image's registry: those that are given, else those of `~/.docker/config.json`.
pub(crate) async fn of(image: &ImageRef, given: Option<&RegistryAuth>) -> Option<Credentials> {
    match given {
        Some(auth) => Some(Credentials::Password(auth.clone())),
        None => of_home(image).await,
    }
}

async fn of_home(image: &ImageRef) -> Option<Credentials> {
    let path = std::env::home_dir()?.join(".docker/config.json");
    let program = |name: &str| PathBuf::from(format!("docker-credential-{name}"));
    of_file(&path, image.pull_registry(), program).await
}

/// The registry's own helper first, then the helper of all, then what the file holds itself.
async fn of_file(
    path: &Path,
    registry: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Option<Credentials> {
    let text = tokio::fs::read(path).await.ok()?;
    let config: Config = serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot read the registries' credentials"))
        .ok()?;
    let entry = config.auths.iter().find(|(key, _)| same(key, registry));
    let own = config
        .cred_helpers
        .iter()
        .find(|(key, _)| same(key, registry))
        .map(|(_, name)| name);
    if let Some(name) = own.or(config.creds_store.as_ref()) {
        let key = match entry {
            Some((key, _)) => key,
            None if HUB_KEYS.contains(&registry) => HUB_URL,
            None => registry,
        };
        match of_helper(name, &program(name), key).await {
            Ok(None) => {}
            Ok(found) => return found,
            Err(why) => {
                tracing::warn!(helper = %program(name).display(), registry, why, "no credentials from the helper program");
            }
        }
    }
    of_entry(entry?.1)
}

/// Whether a key of the configuration, a host or an address, means the registry.
fn same(key: &str, registry: &str) -> bool {
    let host = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    host == registry || (HUB_KEYS.contains(&host) && HUB_KEYS.contains(&registry))
}

fn of_entry(entry: &Entry) -> Option<Credentials> {
    if !entry.registrytoken.is_empty() {
        return Some(Credentials::RegistryToken(entry.registrytoken.clone()));
    }
    if !entry.identitytoken.is_empty() {
        return Some(Credentials::IdentityToken(entry.identitytoken.clone()));
    }
    if entry.auth.is_empty() {
        return Credentials::password(&entry.username, &entry.password);
    }
    let plain = String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok()?;
    let (username, password) = plain.split_once(':')?;
    Credentials::password(username, password.trim_end_matches('\0'))
}

/// Asks a helper program, which gets the registry's name on standard input and answers in JSON.
async fn of_helper(
    name: &str,
    program: &Path,
    registry: &str,
) -> Result<Option<Credentials>, String> {
    if name.is_empty() || name.contains('/') {
        return Err(format!("{name:?} is no name of a helper"));
    }
    let output = tokio::time::timeout(HELPER, ask(program, registry))
        .await
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        // The one error that helpers have in common.
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{}: {}", output.status, text.trim()));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    if answer.username == TOKEN_USER {
        return Ok(Some(Credentials::IdentityToken(answer.secret)));
    }
    Ok(Credentials::password(&answer.username, &answer.secret))
}

async fn ask(program: &Path, registry: &str) -> std::io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not want to read it says so by its status.
        let _unread = input.write_all(registry.as_bytes()).await;
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new(config: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("config.json"), config).expect("a file");
            Self(folder)
        }

        /// A helper that writes down what it is asked.
        fn helper(&self, name: &str, script: &str) {
            let path = self.0.path().join(name);
            let asked = self.0.path().join("asked");
            let text = format!("#!/bin/sh\ncat >{}\n{script}\n", asked.display());
            // Written by a program of its own: a thread of another test may fork while the file is open here.
            let written = std::process::Command::new("sh")
                .args(["-c", "printf %s \"$1\" >\"$0\""])
                .arg(&path)
                .arg(text)
                .status();
            assert!(written.expect("sh").success());
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .expect("a mode");
        }

        fn asked(&self) -> String {
            std::fs::read_to_string(self.0.path().join("asked")).expect("the helper ran")
        }

        async fn find(&self, registry: &str) -> Option<Credentials> {
            let program = |name: &str| self.0.path().join(name);
            of_file(&self.0.path().join("config.json"), registry, program).await
        }
    }

    fn password(username: &str, password: &str) -> Option<Credentials> {
        Credentials::password(username, password)
    }

    #[tokio::test]
    async fn credentials_are_found_by_host_and_port() {
        let auth = STANDARD.encode("me:se:cret");
        let fixture = Fixture::new(&format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"127.0.0.1:5000":{{"auth":"{auth}"}},"x.io":{{}}}}}}"#
        ));
        for registry in ["registry-1.docker.io", "127.0.0.1:5000"] {
            assert_eq!(fixture.find(registry).await, password("me", "se:cret"));
        }
        for registry in ["127.0.0.1:5001", "127.0.0.1", "x.io", "y.io"] {
            assert_eq!(fixture.find(registry).await, None);
        }
    }

    #[tokio::test]
    async fn tokens_and_plain_names_are_understood() {
        let fixture = Fixture::new(
            r#"{"auths":{"a.io":{"auth":"bWU6eA==","identitytoken":"i"},"b.io":{"registrytoken":"r"},
               "c.io":{"username":"me","password":"x"}},"HttpHeaders":{"a":"b"}}"#,
        );
        let identity = Credentials::IdentityToken("i".to_owned());
        let registry = Credentials::RegistryToken("r".to_owned());
        assert_eq!(fixture.find("a.io").await, Some(identity));
        assert_eq!(fixture.find("b.io").await, Some(registry));
        assert_eq!(fixture.find("c.io").await, password("me", "x"));
    }

    #[tokio::test]
    async fn a_registrys_own_helper_comes_first_and_then_the_helper_of_all() {
        let fixture = Fixture::new(
            r#"{"auths":{"https://b.io/v2/":{}},"credHelpers":{"a.io:5000":"own"},"credsStore":"all"}"#,
        );
        fixture.helper(
            "own",
            r#"[ "$1" = get ] && echo '{"ServerURL":"a.io:5000","Username":"me","Secret":"own"}'"#,
        );
        fixture.helper("all", r#"echo '{"Username":"<token>","Secret":"all"}'"#);
        assert_eq!(fixture.find("a.io:5000").await, password("me", "own"));
        assert_eq!(fixture.asked(), "a.io:5000");
        let token = Some(Credentials::IdentityToken("all".to_owned()));
        for (registry, asked) in [
            ("b.io", "https://b.io/v2/"),
            ("c.io", "c.io"),
            ("registry-1.docker.io", HUB_URL),
        ] {
            assert_eq!(fixture.find(registry).await, token);
            assert_eq!(fixture.asked(), asked);
        }
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_or_fails_leaves_what_the_file_holds() {
        let fixture = Fixture::new(
            r#"{"auths":{"a.io":{"auth":"bWU6eA=="},"b.io":{"auth":"bWU6eA=="},"c.io":{"auth":"bWU6eA=="}},
               "credHelpers":{"a.io":"no","b.io":"bad","c.io":"absent"}}"#,
        );
        fixture.helper(
            "no",
            "echo 'credentials not found in native keychain'; exit 1",
        );
        fixture.helper("bad", "echo nonsense");
        for registry in ["a.io", "b.io", "c.io"] {
            assert_eq!(fixture.find(registry).await, password("me", "x"));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", password("me", "hidden"));
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
