//! What can go wrong with an image, cut by what the caller can do, and what of it the runtime's callers see.

use std::io;
use std::path::{Path, PathBuf};

use super::Digest;
use crate::runtime::{BoxError, RuntimeError};

/// A failure of the image store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Pull or import it.
    #[error("image {0} is not present; pull or import it first")]
    Missing(String),
    /// Correct the name.
    #[error("{reference:?} is not an image reference: {reason}")]
    InvalidReference {
        /// The text given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Give a name, or another archive.
    #[error("{0}")]
    InvalidRequest(String),
    /// Use an image of this machine's architecture.
    #[error("image {image} is for {found}, this machine is {host}")]
    WrongArchitecture {
        /// The image.
        image: String,
        /// Its platform, `os/architecture`.
        found: String,
        /// Ours.
        host: String,
    },
    /// Remove the containers first.
    #[error("image {0} is in use by a container; remove the container first")]
    InUse(String),
    /// The data is not what its digest says: fetch it again from a source that can be trusted.
    #[error("{what} has digest {actual} instead of {expected}")]
    DigestMismatch {
        /// The blob or layer.
        what: String,
        /// What the image says.
        expected: Digest,
        /// What the data has.
        actual: Digest,
    },
    /// The data is longer or shorter than the image says.
    #[error("{what} has {actual} bytes instead of {expected}")]
    SizeMismatch {
        /// The blob.
        what: String,
        /// What the image says.
        expected: u64,
        /// What there is, or at least is.
        actual: u64,
    },
    /// The archive ends in the middle.
    #[error("{0} is truncated")]
    Truncated(String),
    /// The archive or the document cannot be understood.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Archive, manifest, config or entry.
        what: String,
        /// Why.
        reason: String,
    },
    /// An archive entry is named to lie outside of the root.
    #[error("archive entry {} leads out of the root file system", .0.display())]
    PathEscapes(PathBuf),
    /// A hard link in the archive points outside of the root, or to nothing in the same layer.
    #[error("hard link {} points to {}, which is not a file of the same layer", .path.display(), .target.display())]
    BadHardLink {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// Device nodes need root.
    #[error("archive entry {} is a device node, which needs root to be made", .0.display())]
    DeviceRefused(PathBuf),
    /// The archive unpacks to more than is allowed.
    #[error("the archive unpacks to more than {limit} bytes")]
    TooLarge {
        /// The bound that was passed.
        limit: u64,
    },
    /// The archive has more entries than is allowed.
    #[error("the archive has more than {limit} entries")]
    TooManyEntries {
        /// The bound that was passed.
        limit: u64,
    },
    /// The image uses a media type or an entry type that is not supported.
    #[error("{what} is of type {kind}, which is not supported")]
    Unsupported {
        /// Layer, manifest or entry.
        what: String,
        /// Its type.
        kind: String,
    },
    /// The image exists, but not for this platform.
    #[error("image {image} has no variant for {wanted}; it has {offered}")]
    NoPlatform {
        /// The image.
        image: String,
        /// Platform asked for.
        wanted: String,
        /// Platforms there are.
        offered: String,
    },
    /// Give credentials, or others.
    #[error("registry {registry} refuses access to {image}: {reason}")]
    Unauthorized {
        /// Host name of the registry.
        registry: String,
        /// The image.
        image: String,
        /// The registry's words.
        reason: String,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no image {image}")]
    NotInRegistry {
        /// Host name of the registry.
        registry: String,
        /// The image.
        image: String,
    },
    /// Wait, then ask again.
    #[error("registry {registry} does not serve {image}")]
    Network {
        /// Host name of the registry.
        registry: String,
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The disk or the file system refuses; report it.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done, with the object's name.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// An input or output error at a path.
    pub(super) fn io(verb: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action: format!("{verb} {}", path.display()),
            source: source.into(),
        }
    }

    /// A document or an archive that makes no sense.
    pub(super) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    /// Whether trying again later, with what has come so far, may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Network { .. })
    }

    /// The runtime's word for it, said by `engine`.
    #[must_use]
    pub fn into_runtime(self, engine: &'static str) -> RuntimeError {
        match self {
            Self::Missing(image) => RuntimeError::ImageMissing(image),
            Self::NotInRegistry { .. }
            | Self::InvalidReference { .. }
            | Self::InvalidRequest(_)
            | Self::WrongArchitecture { .. }
            | Self::InUse(_)
            | Self::NoPlatform { .. }
            | Self::Unauthorized { .. }
            | Self::PathEscapes(_)
            | Self::BadHardLink { .. }
            | Self::DeviceRefused(_)
            | Self::TooLarge { .. }
            | Self::TooManyEntries { .. }
            | Self::Unsupported { .. } => RuntimeError::Invalid(self.to_string()),
            Self::Network { .. } => RuntimeError::Unavailable {
                engine: "the image registry",
                source: Box::new(self),
            },
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Truncated(_)
            | Self::Malformed { .. }
            | Self::Io { .. } => RuntimeError::Engine {
                engine,
                action: "reading an image".to_owned(),
                source: Box::new(self),
            },
        }
    }
}

impl From<ImageError> for RuntimeError {
    fn from(error: ImageError) -> Self {
        error.into_runtime("image store")
    }
}
