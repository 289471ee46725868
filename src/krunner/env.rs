//! The environment that the operator names: found, fetched, unpacked once.

use std::fs;
use std::path::{Path, PathBuf};

use super::{KrunnerEnv, KrunnerError, KrunnerLayer, Package, at, package, place};
use crate::image::{Bundle, BundledImage, ImageError, ImportOptions, PullOptions, RemoteImage};

/// Where an image has it.
const INSIDE: &str = "opt/backend.ai";
/// The name of an image that is in no registry.
const UNNAMED: &str = "krunner-env";

/// Where the environment comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// This binary.
    #[default]
    BuiltIn,
    /// An unpacked folder, or a folder or archive that is an image.
    Path(PathBuf),
    /// An image of a registry.
    Registry(String),
}

/// Whose runner a folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Python,
}

impl Source {
    /// What begins with `/` or `.`, or is there, is a path; the rest is the name of an image.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let path = Path::new(text);
        if text.starts_with(['/', '.']) || path.exists() {
            Self::Path(path.to_owned())
        } else {
            Self::Registry(text.to_owned())
        }
    }

    /// Finds or fetches it, unpacks it below the state folder unless that is done, and says what is in it. `package` is
    /// the operator's install of 19.03's agent. Credentials for registries are those of `docker login`.
    ///
    /// # Errors
    /// [`KrunnerError`], which names what was given and what to do.
    pub async fn open(
        &self,
        package: Option<&Path>,
        state_dir: &Path,
    ) -> Result<KrunnerEnv, KrunnerError> {
        let (state_dir, package) = (state_dir.to_owned(), package.map(Path::to_owned));
        let (name, found) = match self {
            Self::BuiltIn => {
                let unpack = move || KrunnerLayer::built_in().ensure_unpacked(&state_dir);
                let folder = blocking(unpack).await?;
                return Ok(folder.join(INSIDE).into());
            }
            Self::Path(path) => {
                let (name, path) = (path.display().to_string(), path.clone());
                (name, blocking(move || of_path(&path, &state_dir)).await?)
            }
            Self::Registry(name) => (name.clone(), of_registry(name, &state_dir).await?),
        };
        let (root, kind) = found;
        if kind == Kind::Ours {
            return Ok(root.into());
        }
        let package = package.ok_or(KrunnerError::NoPackage(name))?;
        blocking(move || {
            at("make mount points in", &root, package::prepare(&root))?;
            Ok(KrunnerEnv {
                package: Some(Package::open(&package)?),
                root,
            })
        })
        .await
    }
}

fn of_path(path: &Path, state_dir: &Path) -> Result<(PathBuf, Kind), KrunnerError> {
    // Engines take absolute paths only.
    let path = at("find", path, fs::canonicalize(path))?;
    let layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
    if path.is_dir() && !layout {
        let inner = path.join(INSIDE);
        let found = [inner, path.clone()]
            .into_iter()
            .find_map(|root| Some((kind(&root)?, root)));
        let (kind, root) = found.ok_or_else(|| no_runner(&path))?;
        return Ok((root, kind));
    }
    let failed = |source| KrunnerError::Image {
        name: path.display().to_string(),
        source,
    };
    let options = ImportOptions::default();
    let scratch = place::parent(state_dir);
    let bundle = Bundle::open(&path, Some(UNNAMED), &options, &scratch).map_err(failed)?;
    unpacked(&path.display().to_string(), &bundle.images()[0], state_dir)
}

async fn of_registry(name: &str, state_dir: &Path) -> Result<(PathBuf, Kind), KrunnerError> {
    let known = known(name, state_dir);
    if name.contains('@')
        && let Some(found) = known
    {
        return Ok(found);
    }
    let failed = |source| KrunnerError::Image {
        name: name.to_owned(),
        source,
    };
    let image = match RemoteImage::find(name, PullOptions::default()).await {
        // A node starts without its registry when it has been there before.
        Err(error @ ImageError::Unreachable { .. }) if known.is_some() => {
            let error = anyhow::Error::from(error);
            tracing::warn!(
                name,
                "the krunner environment is the one of last time: {error:#}"
            );
            return known.ok_or_else(|| KrunnerError::NoRunner(name.to_owned()));
        }
        other => other.map_err(failed)?,
    };
    let digest = image.digest();
    let found = match find(&digest, state_dir) {
        Some(found) => found,
        None => {
            tracing::info!(name, digest, "fetching the krunner environment");
            let bundle = image
                .fetch(&place::parent(state_dir))
                .await
                .map_err(failed)?;
            let (name, state_dir) = (name.to_owned(), state_dir.to_owned());
            blocking(move || unpacked(&name, &bundle.images()[0], &state_dir)).await?
        }
    };
    let note = note(name, state_dir);
    at("write", &note, fs::write(&note, digest))?;
    Ok(found)
}

/// The folder of an image, made when it is not there.
fn unpacked(
    name: &str,
    image: &BundledImage,
    state_dir: &Path,
) -> Result<(PathBuf, Kind), KrunnerError> {
    let digest = &image.manifest_digest;
    place::ensure(state_dir, digest, &is_good, |folder| {
        image.unpack(folder).map_err(|source| KrunnerError::Image {
            name: name.to_owned(),
            source,
        })?;
        match is_good(folder) {
            true => Ok(()),
            false => Err(KrunnerError::NoRunner(name.to_owned())),
        }
    })?;
    find(digest, state_dir).ok_or_else(|| KrunnerError::NoRunner(name.to_owned()))
}

fn find(digest: &str, state_dir: &Path) -> Option<(PathBuf, Kind)> {
    let root = place::find(state_dir, digest, &is_good)?.join(INSIDE);
    Some((root.clone(), kind(&root)?))
}

/// What the name led to last time.
fn known(name: &str, state_dir: &Path) -> Option<(PathBuf, Kind)> {
    find(&fs::read_to_string(note(name, state_dir)).ok()?, state_dir)
}

/// Where that is noted.
fn note(name: &str, state_dir: &Path) -> PathBuf {
    let plain = name.replace(['/', ':', '@'], "_");
    place::parent(state_dir).join(format!("{plain}.digest"))
}

fn is_good(folder: &Path) -> bool {
    kind(&folder.join(INSIDE)).is_some()
}

fn kind(root: &Path) -> Option<Kind> {
    // Links in it lead to places that only kernels have.
    let has = |name: &str| fs::symlink_metadata(root.join(name)).is_ok();
    if root.join("bin/krunner").is_file() {
        Some(Kind::Ours)
    } else if has("bin/python") && root.join("lib/python3.6/os.py").is_file() {
        Some(Kind::Python)
    } else {
        None
    }
}

fn no_runner(path: &Path) -> KrunnerError {
    KrunnerError::NoRunner(path.display().to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KrunnerError> + Send + 'static,
) -> Result<T, KrunnerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => at(
            "unpack",
            Path::new("the krunner environment"),
            Err(std::io::Error::other(error)),
        ),
    }
}
