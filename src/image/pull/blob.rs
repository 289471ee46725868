//! The bytes of one blob, from a registry or a file, to wherever they are kept.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use indicatif::ProgressBar;
use oci_client::client::BlobResponse;
use tokio::io::AsyncReadExt as _;

use super::{Layer, Remote, Upload};
use crate::image::error::{ImageError, Result};

/// A broken connection is made again so often, each time from where it broke.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

/// Fetches what is missing of a blob. Who finishes the upload checks the digest.
pub(crate) async fn fetch(
    remote: &Remote,
    layer: &Layer,
    upload: &mut impl Upload,
    progress: &ProgressBar,
) -> Result<()> {
    progress.inc(upload.offset().min(layer.size()));
    let mut attempt = 1;
    loop {
        match fetch_once(remote, layer, upload, progress).await {
            Err(error @ ImageError::Unreachable { .. }) if attempt < ATTEMPTS => {
                tracing::warn!(%error, attempt, "the connection to the registry broke; resuming");
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

async fn fetch_once(
    remote: &Remote,
    layer: &Layer,
    upload: &mut impl Upload,
    progress: &ProgressBar,
) -> Result<()> {
    if upload.offset() == layer.size() {
        return Ok(());
    }
    let stream = match remote.blob(&layer.digest, upload.offset()).await? {
        BlobResponse::Partial(stream) => stream,
        BlobResponse::Full(stream) => {
            if upload.offset() > 0 {
                progress.dec(upload.offset());
                upload.rewind().await?;
            }
            stream
        }
    };
    receive(layer, stream, upload, progress).await
}

async fn receive(
    layer: &Layer,
    mut stream: impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
    upload: &mut impl Upload,
    progress: &ProgressBar,
) -> Result<()> {
    let (what, size) = (&layer.what, layer.size());
    let mut piece = Vec::with_capacity(PIECE);
    let received = loop {
        let chunk = stream.try_next().await;
        if let Ok(Some(chunk)) = &chunk {
            piece.extend_from_slice(chunk);
        }
        let end = upload.offset() + piece.len() as u64;
        if end > size {
            let why = "it is longer than its manifest says";
            return Err(ImageError::malformed(what, why));
        }
        // A whole blob is judged by its digest, whatever the stream says.
        let over = end == size || !matches!(chunk, Ok(Some(_)));
        if over || piece.len() >= PIECE {
            upload.write(&piece).await?;
            progress.inc(piece.len() as u64);
            piece.clear();
        }
        match chunk {
            _ if end == size => break Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => break Err(std::io::ErrorKind::UnexpectedEof.into()),
            Err(error) => break Err(error),
        }
    };
    received.map_err(|error: std::io::Error| ImageError::Unreachable {
        what: what.clone(),
        source: Box::new(error),
    })
}

/// Writes a blob that lies in a file.
pub(super) async fn copy(path: &Path, upload: &mut impl Upload) -> Result<()> {
    let read = || ImageError::io(format!("read {}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(read())?;
    if upload.offset() > 0 {
        upload.rewind().await?;
    }
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        piece.clear();
        let part = (&mut file).take(PIECE as u64);
        tokio::pin!(part);
        part.read_to_end(&mut piece).await.map_err(read())?;
        if piece.is_empty() {
            return Ok(());
        }
        upload.write(&piece).await?;
    }
}
