//! A bundled image as the archive that `docker load` takes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use tokio::sync::mpsc;

use super::super::compression::decompress;
use super::super::error::{ImageError, Result};
use super::{Bundle, BundledImage, BundledLayer};

/// Size of the pieces of a stream, bytes.
const PIECE: usize = 256 << 10;

impl Bundle {
    /// Writes the archive that `docker load` takes: layers as plain tars, which every Docker takes. Blocks.
    ///
    /// # Errors
    /// [`ImageError::Io`] when it cannot be read or written.
    pub fn docker_save(&self, image: &BundledImage, out: impl Write) -> Result<()> {
        write(image, out).map_err(ImageError::io(format!(
            "write the archive of {}",
            image.names.join(" ")
        )))
    }

    /// The archive of [`Bundle::docker_save`] piece by piece, for a request's body; the last item may be an error.
    /// `image` is its place in [`Bundle::images`]; there is nothing of an image that is not there.
    pub fn docker_save_stream(
        self: Arc<Self>,
        image: usize,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(4);
        let write = tokio::task::spawn_blocking(move || {
            let Some(image) = self.images.get(image) else {
                return;
            };
            let out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
            if let Err(error) = write(image, out) {
                // Nobody listens any more: the request has failed by itself.
                let _gone = sender.blocking_send(Err(error));
            }
        });
        // It ends when its receiver is dropped.
        drop(write);
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        })
        .fuse()
    }
}

/// What is written becomes pieces of a stream.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(image: &BundledImage, out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let config = format!("{}.json", hex(&image.config_digest));
    append(&mut tar, &config, image.config.len() as u64, &*image.config)?;
    let mut layers: Vec<String> = Vec::new();
    for layer in &image.layers {
        let path = format!("{}/layer.tar", hex(&layer.diff_id));
        if !layers.contains(&path) {
            append(&mut tar, &path, layer.tar_size, plain(layer)?)?;
        }
        layers.push(path);
    }
    let manifest = json!([{ "Config": config, "RepoTags": image.names, "Layers": layers }]);
    let manifest = manifest.to_string();
    let size = manifest.len() as u64;
    append(&mut tar, "manifest.json", size, manifest.as_bytes())?;
    tar.into_inner()?.flush()
}

fn plain(layer: &BundledLayer) -> io::Result<Box<dyn Read>> {
    let (_, plain) = decompress(File::open(&layer.path)?)?;
    Ok(Box::new(plain.take(layer.tar_size)))
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, content)
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}
