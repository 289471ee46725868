//! One layer from a registry: fetched into a `.partial` file, which a broken pull leaves for the next one.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use indicatif::ProgressBar;
use oci_client::client::BlobResponse;
use oci_spec::image::Descriptor;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{Remote, blocking};
use crate::image::error::{ImageError, Result};
use crate::image::layout::{Layout, Work};

/// A broken connection is made again so often, each time from where it broke.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
const WAIT_FOR_OTHER: Duration = Duration::from_millis(50);

/// Where a layer is kept until it is whole.
pub(super) fn partial(layout: &Layout, digest: &str) -> Result<PathBuf> {
    Ok(layout.blob(digest)?.with_extension("partial"))
}

/// Fetches a layer, checks it, and unpacks it, unless somebody else has done so meanwhile, or it is stopped before it
/// is fetched.
pub(super) async fn layer(
    layout: &Layout,
    work: &Work,
    remote: &Remote,
    layer: &Descriptor,
    diff_id: &str,
    progress: &ProgressBar,
    stop: &CancellationToken,
) -> Result<()> {
    let digest = layer.digest().to_string();
    let what = format!("blob {digest} of {}", remote.name());
    let limit = layout.limits().bytes;
    if layer.size() > limit {
        return Err(ImageError::TooManyBytes { what, limit });
    }
    let path = partial(layout, &digest)?;
    let fetched = async {
        match claim(layout, &path, diff_id).await? {
            Some(file) => fetch(remote, &what, &digest, layer.size(), file, progress)
                .await
                .map(Some),
            None => Ok(None),
        }
    };
    let fetched = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        fetched = fetched => fetched?,
    };
    let Some(file) = fetched else { return Ok(()) };
    let check = (what.clone(), digest.clone(), path.clone());
    let file = blocking(layout, move |_| {
        let (what, digest, path) = check;
        verify(&what, &digest, file).inspect_err(|_| forget(&path))
    });
    let file = file.await?;
    let (work, diff_id) = (work.share()?, diff_id.to_owned());
    blocking(layout, move |layout| {
        // Its digest is right: a layer that does not unpack will not do so next time either.
        let unpacked = layout.add_layer(&work, &what, file, Some(&diff_id));
        forget(&path);
        unpacked.map(drop)
    })
    .await?;
    tracing::info!(
        image = remote.name(),
        digest,
        size = layer.size(),
        "layer pulled"
    );
    Ok(())
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
                    forget(path);
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

/// Fetches what is missing at the end of the file. The caller checks the digest.
pub(in crate::image) async fn fetch(
    remote: &Remote,
    what: &str,
    digest: &str,
    size: u64,
    file: File,
    progress: &ProgressBar,
) -> Result<File> {
    let mut file = tokio::fs::File::from_std(file);
    let failed = || ImageError::io(format!("write {what}"));
    let start = file.seek(SeekFrom::End(0)).await.map_err(failed())?;
    progress.inc(start.min(size));
    let mut attempt = 1;
    loop {
        match fetch_once(remote, what, digest, size, &mut file, progress).await {
            Err(error @ ImageError::Unreachable { .. }) if attempt < ATTEMPTS => {
                tracing::warn!(%error, attempt, "the connection to the registry broke; resuming");
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            other => {
                other?;
                return Ok(file.into_std().await);
            }
        }
    }
}

async fn fetch_once(
    remote: &Remote,
    what: &str,
    digest: &str,
    size: u64,
    file: &mut tokio::fs::File,
    progress: &ProgressBar,
) -> Result<()> {
    let failed = || ImageError::io(format!("write {what}"));
    let mut offset = file.seek(SeekFrom::End(0)).await.map_err(failed())?;
    if offset == size {
        return Ok(());
    }
    let mut stream = match remote.blob(digest, offset).await? {
        BlobResponse::Partial(stream) => stream,
        BlobResponse::Full(stream) => {
            progress.dec(offset);
            offset = 0;
            file.set_len(0).await.map_err(failed())?;
            file.seek(SeekFrom::Start(0)).await.map_err(failed())?;
            stream
        }
    };
    let received = loop {
        match stream.try_next().await {
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(chunk)) => {
                let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
                if chunk.len() > room {
                    return Err(ImageError::malformed(
                        what,
                        "it is longer than its manifest says",
                    ));
                }
                file.write_all(&chunk).await.map_err(failed())?;
                offset += chunk.len() as u64;
                progress.inc(chunk.len() as u64);
            }
        }
    };
    file.flush().await.map_err(failed())?;
    // A whole blob is judged by its digest, whatever the stream says.
    match received {
        _ if offset == size => Ok(()),
        Ok(()) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        Err(error) => Err(error),
    }
    .map_err(|error| ImageError::Unreachable {
        what: what.to_owned(),
        source: Box::new(error),
    })
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

pub(super) fn forget(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a fetched layer");
    }
}
