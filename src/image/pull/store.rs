//! What the node's own store and an engine's have in common: blobs that are written piece by piece, and go on where
//! somebody left off.

use std::fs::File;
use std::io::SeekFrom;

use async_trait::async_trait;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{Described, Layer, Source};
use crate::image::error::{ImageError, Result};

/// A store that images are pulled into. Everything is called from any task, and by many at once.
#[async_trait]
pub(crate) trait BlobStore: Sync {
    /// Keeps what is added from being taken for garbage.
    type Hold: Send + Sync;
    /// A blob that is being written.
    type Upload: Upload;

    /// Begins to add.
    async fn hold(&self) -> Result<Self::Hold>;

    /// Ends it. After an error that may pass, what came whole stays for the next try as long as the store wants.
    async fn release(&self, hold: Self::Hold, failed: Option<&ImageError>);

    /// Whether a layer is there and need not come.
    async fn has(&self, hold: &Self::Hold, layer: &Layer) -> Result<bool>;

    /// Opens a layer's blob where somebody left off; `None` when it is there. Waits while another one writes it.
    async fn open(&self, hold: &Self::Hold, layer: &Layer) -> Result<Option<Self::Upload>>;

    /// Forgets what was written of a layer's blob.
    async fn forget(&self, layer: &Layer);

    /// Whether [`BlobStore::keep`] may do without layers: then it asks for those that it needs.
    fn is_lazy(&self) -> bool {
        false
    }

    /// Keeps an image whose layers are there, or are to be had from `source`.
    async fn keep(&self, hold: &Self::Hold, image: &Described, source: &Source<'_>) -> Result<()>;

    /// Gives the image its names; others that had them lose them.
    async fn name(&self, hold: &Self::Hold, image: &Described, names: &[String]) -> Result<()>;
}

/// A blob that is being written, by one alone. What is dropped unfinished stays to be resumed.
#[async_trait]
pub(crate) trait Upload: Send {
    /// How many bytes are there.
    fn offset(&self) -> u64;

    /// Appends bytes.
    async fn write(&mut self, piece: &[u8]) -> Result<()>;

    /// Begins again with nothing.
    async fn rewind(&mut self) -> Result<()>;

    /// Compares size and digest, and keeps it.
    async fn finish(self) -> Result<()>;
}

/// A blob that is written into a file, whose reader will check it.
pub(crate) struct FileUpload {
    pub(super) file: tokio::fs::File,
    offset: u64,
    what: String,
}

impl FileUpload {
    /// Goes on at the end of the file.
    pub(crate) async fn open(what: &str, file: File) -> Result<Self> {
        let mut file = tokio::fs::File::from_std(file);
        let offset = file.seek(SeekFrom::End(0)).await;
        Ok(Self {
            offset: offset.map_err(ImageError::io(format!("write {what}")))?,
            what: what.to_owned(),
            file,
        })
    }

    /// The file with all that was written.
    pub(super) async fn into_file(mut self) -> Result<File> {
        let flushed = self.file.flush().await;
        flushed.map_err(ImageError::io(format!("write {}", self.what)))?;
        Ok(self.file.into_std().await)
    }
}

#[async_trait]
impl Upload for FileUpload {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, piece: &[u8]) -> Result<()> {
        let file = &mut self.file;
        let written = async {
            file.write_all(piece).await?;
            file.flush().await
        };
        let written = written.await;
        written.map_err(ImageError::io(format!("write {}", self.what)))?;
        self.offset += piece.len() as u64;
        Ok(())
    }

    async fn rewind(&mut self) -> Result<()> {
        let file = &mut self.file;
        let emptied = async {
            file.set_len(0).await?;
            file.seek(SeekFrom::Start(0)).await
        };
        let emptied = emptied.await;
        emptied.map_err(ImageError::io(format!("write {}", self.what)))?;
        self.offset = 0;
        Ok(())
    }

    async fn finish(self) -> Result<()> {
        self.into_file().await.map(drop)
    }
}
