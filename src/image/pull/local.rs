//! The node's own store as a place to pull into: a layer is fetched into a `.partial` file, which a broken pull leaves
//! for the next one, and unpacked when it is whole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::store::FileUpload;
use super::{BlobStore, Described, Layer, Source, Upload};
use crate::image::error::{ImageError, Result};
use crate::image::layout::{Layout, Work};
use crate::image::{Added, enter};

/// Pause before a layer that another pull fetches is looked at again.
const WAIT_FOR_OTHER: Duration = Duration::from_millis(50);

/// A layer that is being fetched.
pub(crate) struct Partial {
    layout: Layout,
    work: Work,
    layer: Layer,
    path: PathBuf,
    upload: FileUpload,
}

#[async_trait]
impl BlobStore for Layout {
    type Hold = Work;
    type Upload = Partial;

    async fn hold(&self) -> Result<Work> {
        blocking(self, Self::work).await
    }

    async fn release(&self, hold: Work, failed: Option<&ImageError>) {
        drop(hold);
        if failed.is_some()
            && let Err(error) = blocking(self, Self::collect).await
        {
            tracing::warn!(%error, "cannot clean the image store");
        }
    }

    async fn has(&self, _: &Work, layer: &Layer) -> Result<bool> {
        Ok(self.layer(&layer.diff_id).is_some())
    }

    async fn open(&self, work: &Work, layer: &Layer) -> Result<Option<Partial>> {
        let limit = self.limits().bytes;
        if layer.size() > limit {
            let what = layer.what.clone();
            return Err(ImageError::TooManyBytes { what, limit });
        }
        let path = partial(self, &layer.digest)?;
        let Some(file) = claim(self, &path, &layer.diff_id).await? else {
            return Ok(None);
        };
        Ok(Some(Partial {
            layout: self.clone(),
            work: work.share()?,
            upload: FileUpload::open(&layer.what, file).await?,
            layer: layer.clone(),
            path,
        }))
    }

    async fn forget(&self, layer: &Layer) {
        if let Ok(path) = partial(self, &layer.digest) {
            remove(&path);
        }
    }

    async fn keep(&self, work: &Work, image: &Described, _: &Source<'_>) -> Result<()> {
        self.write_blob(work, &image.config_bytes)?;
        self.write_blob(work, &image.manifest_bytes).map(drop)
    }

    async fn name(&self, work: &Work, image: &Described, names: &[String]) -> Result<()> {
        let added = Added {
            manifest: image.manifest_digest.clone(),
            manifest_size: image.manifest_bytes.len() as u64,
            repo_digest: Some(image.top_digest.clone()),
            names: names.to_owned(),
        };
        let work = work.share()?;
        let change = move |layout: &Self| {
            layout.change_index(&work, |manifests| {
                enter(manifests, &added);
                Ok(())
            })
        };
        blocking(self, change).await
    }
}

#[async_trait]
impl Upload for Partial {
    fn offset(&self) -> u64 {
        self.upload.offset()
    }

    async fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.upload.write(piece).await
    }

    async fn rewind(&mut self) -> Result<()> {
        self.upload.rewind().await
    }

    async fn finish(self) -> Result<()> {
        let Self {
            work, layer, path, ..
        } = self;
        let file = self.upload.into_file().await?;
        blocking(&self.layout, move |layout| {
            let (what, digest) = (&layer.what, &layer.digest);
            let unpacked = verify(what, digest, file)
                .and_then(|file| layout.add_layer(&work, what, file, Some(&layer.diff_id)));
            // Its digest is right: a layer that does not unpack will not do so next time either.
            remove(&path);
            unpacked.map(drop)
        })
        .await
    }
}

/// Where a layer is kept until it is whole.
fn partial(layout: &Layout, digest: &str) -> Result<PathBuf> {
    Ok(layout.blob(digest)?.with_extension("partial"))
}

/// The partial file, for this pull alone; `None` when another pull has finished the layer.
async fn claim(layout: &Layout, path: &Path, diff_id: &str) -> Result<Option<File>> {
    let failed = || ImageError::io(format!("open {}", path.display()));
    loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                if layout.layer(diff_id).is_some() {
                    remove(path);
                    return Ok(None);
                }
                let same = std::fs::metadata(path).is_ok_and(|there| {
                    file.metadata()
                        .is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
                });
                if same {
                    return Ok(Some(file));
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(WAIT_FOR_OTHER).await,
            Err(error) => return Err(failed()(error.into())),
        }
    }
}

/// Checks the whole file, and winds it back.
fn verify(what: &str, digest: &str, mut file: File) -> Result<File> {
    let mut hash = HashWriter(Sha256::new());
    let mut read = || -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        io::copy(
            &mut io::BufReader::with_capacity(128 << 10, &file),
            &mut hash,
        )?;
        file.seek(SeekFrom::Start(0))?;
        Ok(())
    };
    read().map_err(ImageError::io(format!("read {what}")))?;
    let found = format!("sha256:{}", hex::encode(hash.0.finalize()));
    if found == digest {
        return Ok(file);
    }
    Err(ImageError::WrongDigest {
        what: what.to_owned(),
        expected: digest.to_owned(),
        found,
    })
}

struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a fetched layer");
    }
}

/// Runs blocking work on the store where blocking is allowed.
pub(in crate::image) async fn blocking<T: Send + 'static>(
    layout: &Layout,
    work: impl FnOnce(&Layout) -> Result<T> + Send + 'static,
) -> Result<T> {
    let layout = layout.clone();
    match tokio::task::spawn_blocking(move || work(&layout)).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::io("work on the image store")(io::Error::other(
            error,
        ))),
    }
}
