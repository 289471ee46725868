//! What goes wrong with images, and what the engine's caller is told of it.

use std::io;

use crate::runtime::RuntimeError;

/// A failure of the image store; everything that was begun is undone when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is no image reference.
    #[error("{text:?} is not an image reference: {why}")]
    Reference {
        /// What was given.
        text: String,
        /// The part that is wrong.
        why: &'static str,
    },
    /// The store has no such image.
    #[error("image {0} is not present; pull or import it first")]
    Missing(String),
    /// A container still stands on the image.
    #[error("image {0} is in use by a container; remove the container first")]
    InUse(String),
    /// The image is for other machines.
    #[error("image {image} is for {found}, this machine is {wanted}; use an image for {wanted}")]
    WrongArchitecture {
        /// The image.
        image: String,
        /// Its architecture.
        found: String,
        /// This machine's.
        wanted: String,
    },
    /// An index has no image for the platform.
    #[error("{image} has no image for {wanted}; it has {found}")]
    NoPlatform {
        /// The image.
        image: String,
        /// `os/arch` asked for.
        wanted: String,
        /// What the index offers.
        found: String,
    },
    /// An entry's path is absolute or climbs out with `..`.
    #[error("the archive's entry {0:?} leaves the root file system")]
    EscapesRoot(String),
    /// A hard link's target is absolute or climbs out with `..`.
    #[error("the archive's hard link {entry:?} points out of the root file system, to {target:?}")]
    LinkEscapesRoot {
        /// The link.
        entry: String,
        /// Its target.
        target: String,
    },
    /// A hard link's target is not in the layer, or is a folder.
    #[error("the archive's hard link {entry:?} points to {target:?}, which it cannot link to")]
    BrokenLink {
        /// The link.
        entry: String,
        /// Its target.
        target: String,
    },
    /// An entry's parent is a file, or a loop of symbolic links.
    #[error("the archive's entry {0:?} lies in something that is not a folder")]
    NotAFolder(String),
    /// Only root makes device nodes.
    #[error("the archive's entry {0:?} is a device node, which only root can make")]
    DeviceRefused(String),
    /// The unpacked layer would be too large.
    #[error("{what} unpacks to more than {limit} bytes")]
    TooManyBytes {
        /// What was unpacked.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The layer has too many files.
    #[error("{what} has more than {limit} entries")]
    TooManyEntries {
        /// What was unpacked.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// Content is not what its digest says.
    #[error("{what} has the digest {found}, not {expected}; it is damaged or forged")]
    WrongDigest {
        /// The blob.
        what: String,
        /// Digest it was asked by.
        expected: String,
        /// Digest of what came.
        found: String,
    },
    /// A layer's content is not what the image's config says.
    #[error(
        "{what} unpacks to {found}, not to the {expected} of its config; it is damaged or forged"
    )]
    WrongDiffId {
        /// The layer.
        what: String,
        /// Digest in the config.
        expected: String,
        /// Digest of the layer's tar.
        found: String,
    },
    /// Labels, environment and the like are for a root file system's tar only.
    #[error(
        "{0} is a whole image with its own config; import it without labels, environment, command and the like"
    )]
    Inapplicable(String),
    /// The archive ends in the middle.
    #[error("{0} ends too early; it is cut off")]
    Truncated(String),
    /// The archive or document cannot be read.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// The object.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A format, media type or digest algorithm that is not handled.
    #[error("{what}: {why} is not supported")]
    Unsupported {
        /// The object.
        what: String,
        /// The format.
        why: String,
    },
    /// The registry has no such image.
    #[error("the registry has no image {0}; check its name and tag")]
    NotInRegistry(String),
    /// The registry wants other credentials.
    #[error("the registry refuses access to {image}; log in with --username and --password-stdin")]
    Denied {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry does not answer, or the connection breaks.
    #[error("cannot fetch {what}; try again")]
    Unreachable {
        /// The image or blob.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry did not take it.
    #[error("cannot push {what}")]
    NotPushed {
        /// The blob or manifest, and where to.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is to be pushed is not a file, and the engine has nothing to push of it.
    #[error("{image} cannot be pushed: {why}")]
    NothingToPush {
        /// The image.
        image: String,
        /// What is missing, and the remedy.
        why: String,
    },
    /// A folder that is to be written is in use.
    #[error("{0} is there already and not empty; remove it or name another")]
    NotEmpty(String),
    /// The engine that keeps the images does not do it.
    #[error(transparent)]
    Engine(RuntimeError),
    /// The file system said no.
    #[error("cannot {action}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Result of the image store.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

impl ImageError {
    /// For `map_err`: an I/O failure with what was being done.
    pub(crate) fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }

    /// A document or archive that cannot be read.
    pub(crate) fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

impl From<RuntimeError> for ImageError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::ImageMissing(image) => Self::Missing(image),
            other => Self::Engine(other),
        }
    }
}

impl From<ImageError> for RuntimeError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Missing(image) => Self::ImageMissing(image),
            ImageError::Engine(error) => error,
            ImageError::Unreachable { .. } => Self::Unavailable {
                engine: "the image registry",
                source: Box::new(error),
            },
            ImageError::Io { action, source } => Self::Engine {
                engine: "the image store",
                action,
                source: Box::new(source),
            },
            other => Self::Invalid(other.to_string()),
        }
    }
}
