//! Names of images: the form that Backend.AI writes, and where a registry finds them.

use std::fmt;

use super::error::{ImageError, Result};

/// The registry of names that say none, and of its older names.
const HUB: &str = "registry-1.docker.io";
const HUB_NAMES: [&str; 3] = ["index.docker.io", "docker.io", HUB];
/// A tag is at most this long, a whole repository name twice that (OCI distribution specification).
const MAX_TAG: usize = 128;

/// An image's name, taken apart: `[registry/]repository[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: Option<String>,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageRef {
    /// Takes a name apart; one with neither tag nor digest gets the tag `latest`.
    ///
    /// # Errors
    /// [`ImageError::Reference`], which says what is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why| ImageError::Reference {
            text: text.to_owned(),
            why,
        };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| digest_hex(digest).is_none()) {
            return Err(wrong("the digest is not sha256: and 64 hex digits"));
        }
        let (path, tag) = split_tag(name);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "the tag is not of letters, digits, '_', '.' and '-', 128 at most",
            ));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first), rest),
            _ => (None, path),
        };
        if registry.is_some_and(|host| {
            !host.bytes().all(is_host_byte) || host.starts_with(['.', '-', ':'])
        }) {
            return Err(wrong("the registry is not a host name"));
        }
        if repository.len() > 2 * MAX_TAG - 1 || !repository.split('/').all(is_component) {
            return Err(wrong(
                "the repository is not of lower case letters and digits with single separators",
            ));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self {
            registry: registry.map(str::to_owned),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// Whether both name the same image, however the default registry is written (`index.docker.io/library/x`, `x`).
    #[must_use]
    pub fn same_image(&self, other: &Self) -> bool {
        self.same_repository(other) && self.tag == other.tag
    }

    /// Whether both are in the same repository.
    #[must_use]
    pub fn same_repository(&self, other: &Self) -> bool {
        self.pull_registry() == other.pull_registry()
            && self.pull_repository() == other.pull_repository()
    }

    /// The name without its digest; `None` when only the digest tells the image.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        let tag = self.tag.as_ref()?;
        Some(format!("{}:{tag}", self.path()))
    }

    /// Registry and repository as given.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.repository),
            None => self.repository.clone(),
        }
    }

    /// What an image is asked for by, checked to be a part of an address: its id as it is, or its name with the tag.
    ///
    /// # Errors
    /// [`ImageError::Invalid`](super::ImageError) when it is neither.
    pub fn key(image: &str) -> Result<String> {
        match digest_hex(image) {
            Some(_) => Ok(image.to_owned()),
            None => Ok(Self::parse(image)?.to_string()),
        }
    }

    /// Writes this name among an image's names as it is written here: engines write names of the default registry in
    /// ways of their own.
    pub fn spell(&self, names: &mut Vec<String>) {
        let Some(name) = self.tagged() else { return };
        let same = |known: &&mut String| Self::parse(known).is_ok_and(|it| it.same_image(self));
        match names.iter_mut().find(same) {
            Some(known) => *known = name,
            None if self.digest.is_none() => names.push(name),
            None => {}
        }
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest digest, `sha256:…`.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The host (and port) that serves the image.
    #[must_use]
    pub fn pull_registry(&self) -> &str {
        match self.registry.as_deref() {
            None => HUB,
            Some(name) if HUB_NAMES.contains(&name) => HUB,
            Some(name) => name,
        }
    }

    /// The repository on that host; official images of the default registry live in `library/`.
    #[must_use]
    pub fn pull_repository(&self) -> String {
        if self.pull_registry() == HUB && !self.repository.contains('/') {
            format!("library/{}", self.repository)
        } else {
            self.repository.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The 64 hex digits of a `sha256:…` digest.
pub(crate) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hex.len() == 64 && hex.bytes().all(digits)).then_some(hex)
}

fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    }
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_component(part: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes
            .iter()
            .all(|byte| plain(byte) || b"._-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_manager_are_kept_as_they_are() {
        for name in [
            "index.docker.io/lablup/python:3.6-ubuntu18.04",
            "127.0.0.1:5000/lablup/python:x",
            "my/python:3",
            "localhost/a:1",
        ] {
            assert_eq!(ImageRef::parse(name).unwrap().to_string(), name);
        }
        assert_eq!(
            ImageRef::parse("h:5000/a").unwrap().to_string(),
            "h:5000/a:latest"
        );
    }

    #[test]
    fn the_default_registry_has_several_names() {
        let one = ImageRef::parse("index.docker.io/lablup/python:3").unwrap();
        assert_eq!(one.pull_registry(), "registry-1.docker.io");
        assert!(one.same_image(&ImageRef::parse("lablup/python:3").unwrap()));
        assert!(!one.same_image(&ImageRef::parse("lablup/python:4").unwrap()));
        let official = ImageRef::parse("docker.io/busybox").unwrap();
        assert_eq!(official.pull_repository(), "library/busybox");
    }

    #[test]
    fn a_name_is_written_as_it_was_asked_for() {
        let spelled = |name: &str, known: &[&str]| {
            let mut names: Vec<String> = known.iter().map(|&it| it.to_owned()).collect();
            ImageRef::parse(name).unwrap().spell(&mut names);
            names
        };
        let long = "index.docker.io/lablup/python:3";
        let known = ["a/b:1", "lablup/python:3"];
        assert_eq!(spelled(long, &known), ["a/b:1", long]);
        assert_eq!(spelled("c/d:1", &known[..1]), ["a/b:1", "c/d:1"]);
        let digest = format!("sha256:{}", "0f".repeat(32));
        for name in [format!("r.io/x@{digest}"), format!("r.io/x:1@{digest}")] {
            assert_eq!(spelled(&name, &known), known);
        }
    }

    #[test]
    fn an_image_is_asked_for_by_id_or_name() {
        let id = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(ImageRef::key(&id).unwrap(), id);
        assert_eq!(ImageRef::key("a/b").unwrap(), "a/b:latest");
        for wrong in ["sha256:0f/..", "../json"] {
            ImageRef::key(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let image = ImageRef::parse(&format!("r.io/a/b@{digest}")).unwrap();
        assert_eq!((image.tag(), image.digest()), (None, Some(digest.as_str())));
        assert_eq!(image.tagged(), None);
    }

    #[test]
    fn what_is_no_reference_is_refused_by_its_name() {
        for text in [
            "",
            ":x",
            "A/b:1",
            "a//b",
            "a/../b",
            "../a:1",
            "a:b:c",
            "a@sha256:12",
            "a b",
            "r.io/",
            "a/b:-x",
            "-/a",
        ] {
            let error = ImageRef::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
