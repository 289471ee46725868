//! What kernels get at `/opt/backend.ai`: the layer with our static runner that this binary carries, an image or folder
//! that the operator names instead, or 19.03's Python with the operator's package of 19.03.
//!
//! It is unpacked once for each node and mounted read-only in every kernel; nothing is copied for a kernel.
//! `build.rs` makes the built-in layer; `krunner-env/` has the sources.

mod env;
mod export;
mod layer;
mod package;
mod place;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::env::Source;
pub use self::export::{DIGEST_LABEL, Exported, VERSION_LABEL, export};
pub use self::layer::KrunnerLayer;
pub use self::package::Package;
use crate::image::ImageError;

/// Where kernels find the runner.
pub const MOUNT_POINT: &str = "/opt/backend.ai";
/// The runner in a kernel.
pub const KRUNNER: &str = "/opt/backend.ai/bin/krunner";

/// What is shown at [`MOUNT_POINT`], and whose runner it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KrunnerEnv {
    /// The folder.
    pub root: PathBuf,
    /// 19.03's runner and helpers, where the folder has Python and no runner of ours.
    pub package: Option<Package>,
}

impl From<PathBuf> for KrunnerEnv {
    /// A folder with our runner.
    fn from(root: PathBuf) -> Self {
        Self {
            root,
            package: None,
        }
    }
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum KrunnerError {
    /// A folder cannot be used: permissions, space.
    #[error("cannot {action} {path}: check its permissions and space")]
    Folder {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What Linux says.
        source: io::Error,
    },
    /// Another agent or a person keeps changing the folder.
    #[error(
        "{0} is not a whole krunner layer and comes back after each removal: stop what writes there"
    )]
    Contested(PathBuf),
    /// The image cannot be had.
    #[error("cannot use the krunner environment {name}")]
    Image {
        /// As it was given.
        name: String,
        /// Why.
        source: ImageError,
    },
    /// There is no runner in it.
    #[error(
        "{0} is no krunner environment: it has neither /opt/backend.ai/bin/krunner nor a Python 3.6 in /opt/backend.ai"
    )]
    NoRunner(String),
    /// 19.03's environment has no runner code.
    #[error(
        "{0} is the krunner environment of 19.03, which holds no runner: name the folder ai/backend of an installed backend.ai-agent 19.03 with --krunner-package"
    )]
    NoPackage(String),
    /// The folder is not that of the package.
    #[error(
        "--krunner-package {path}: it lacks {lacks}; name the folder ai/backend of an installed backend.ai-agent 19.03"
    )]
    BadPackage {
        /// As it was given.
        path: PathBuf,
        /// What is missing.
        lacks: String,
    },
}

fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, KrunnerError> {
    result.map_err(|source| KrunnerError::Folder {
        action,
        path: path.to_owned(),
        source,
    })
}
