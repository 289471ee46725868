//! Image references: `registry[:port]/repository[:tag][@digest]`.

use std::fmt;

use super::{Digest, ImageError};

/// Registry of names that give none, in the form that 19.03 managers use.
const DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where that registry really answers.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A parsed reference. Its text form keeps the registry as it was given; [`ImageRef::same_image`] knows aliases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses a reference. No registry means Docker Hub, neither tag nor digest means `latest`.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`], naming the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::InvalidReference {
            reference: text.to_owned(),
            reason,
        };
        if text.len() > 512 {
            return Err(bad("it is longer than 512 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest)
                    .ok_or_else(|| bad("its digest is not sha256: and 64 hex digits"))?;
                (rest, Some(digest))
            }
        };
        let (registry, rest) = split_registry(rest);
        let (repository, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((repository, tag)) => (repository, Some(tag)),
        };
        if !is_registry(registry) {
            return Err(bad("its registry is not a host name with an optional port"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "its repository is not made of lower-case letters, digits, '.', '_', '-' and '/'",
            ));
        }
        if !tag.is_none_or(is_tag) {
            return Err(bad(
                "its tag is not made of letters, digits, '.', '_' and '-'",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        let repository = if is_docker_hub(registry) && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// Registry as given, `host[:port]`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host and port to send requests to.
    #[must_use]
    pub fn registry_host(&self) -> &str {
        if is_docker_hub(&self.registry) {
            DOCKER_HUB_HOST
        } else {
            &self.registry
        }
    }

    /// Repository below the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, where there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, where there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name under which the store keeps it: without the digest if there is a tag.
    #[must_use]
    pub fn store_name(&self) -> String {
        let digest = self.digest.clone().filter(|_| self.tag.is_none());
        Self {
            digest,
            ..self.clone()
        }
        .to_string()
    }

    /// Whether both name the same repository and tag, whatever they call Docker Hub.
    #[must_use]
    pub fn same_image(&self, other: &Self) -> bool {
        self.same_repository(other) && self.tag == other.tag
    }

    /// Whether both name the same repository.
    #[must_use]
    pub fn same_repository(&self, other: &Self) -> bool {
        self.registry_host() == other.registry_host() && self.repository == other.repository
    }

    /// Whether the registry is on this machine, so that plain HTTP to it harms nobody.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The first component is a registry if it looks like a host: a dot, a port, or `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn is_docker_hub(registry: &str) -> bool {
    matches!(
        registry,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return false;
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (
            "v6",
            if port.is_empty() {
                None
            } else {
                match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None => return false,
                }
            },
        )
    } else {
        match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.bytes()
        .all(|c| word(c) || matches!(c, b'.' | b'_' | b'-'))
        && text.bytes().next().is_some_and(word)
        && text.bytes().next_back().is_some_and(word)
        && !text.contains("..")
}

fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
        && text
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_names_keep_their_form() {
        for name in [
            "index.docker.io/lablup/python:3.6-ubuntu18.04",
            "127.0.0.1:5000/a/b:1",
            "localhost/x:y",
            "[::1]:5000/a:b",
            "example.com/deep/er/name__x:T.a-g_1",
        ] {
            let parsed = ImageRef::parse(name).expect("it is valid");
            assert_eq!(parsed.to_string(), name);
        }
    }

    #[test]
    fn short_names_are_completed() {
        let full = |name| ImageRef::parse(name).expect("it is valid").to_string();
        assert_eq!(full("alpine"), "index.docker.io/library/alpine:latest");
        assert_eq!(
            full("lablup/python:3.6"),
            "index.docker.io/lablup/python:3.6"
        );
        assert_eq!(full("docker.io/alpine:3.8"), "docker.io/library/alpine:3.8");
    }

    #[test]
    fn docker_hub_has_one_host_and_many_names() {
        let one = ImageRef::parse("index.docker.io/lablup/python:3.6").expect("it is valid");
        let two = ImageRef::parse("lablup/python:3.6").expect("it is valid");
        let three = ImageRef::parse("docker.io/lablup/python:3.6").expect("it is valid");
        assert!(one.same_image(&two) && two.same_image(&three));
        assert_eq!(one.registry_host(), "registry-1.docker.io");
    }

    #[test]
    fn a_tag_beside_a_digest_names_the_stored_image() {
        let digest = Digest::of(b"m");
        let text = format!("example.com/a:1@{digest}");
        let parsed = ImageRef::parse(&text).expect("it is valid");
        assert_eq!(parsed.store_name(), "example.com/a:1");
        assert_eq!(parsed.digest(), Some(&digest));
    }

    #[test]
    fn wrong_references_are_named() {
        for text in [
            "",
            "/x",
            "UPPER/case:x",
            "a/b:",
            "a/b:-x",
            "a//b",
            "a/../b",
            "exa mple.com/a",
            "host:99999/a",
            "host:x/a",
            "[::1/a",
            "a@sha256:12",
            "a/b:1:2",
        ] {
            let error = ImageRef::parse(text).expect_err("it is not valid");
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn loopback_is_known_by_address_not_by_prefix() {
        let loopback = |name| ImageRef::parse(name).expect("it is valid").is_loopback();
        assert!(loopback("localhost:5000/a") && loopback("127.0.0.1/a") && loopback("[::1]:1/a"));
        assert!(!loopback("127.0.0.1.example.com/a") && !loopback("example.com/a"));
    }
}
