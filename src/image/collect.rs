//! Removing images, and what no image needs any more.

use std::collections::HashSet;

use super::blob::remove_any;
use super::store::{Folders, blocking};
use super::{Digest, ImageError, ImageRef, Store, layer};

impl Store {
    /// Removes an image's name and, with its last name, its blobs and layers. `in_use` are the images of containers
    /// as they name them: those are refused. While others work on the store, files go with the next removal.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::InUse`].
    pub async fn remove(&self, name: &str, in_use: &[String]) -> Result<(), ImageError> {
        let (folders, name, in_use) = (self.folders.clone(), name.to_owned(), in_use.to_vec());
        blocking(move || {
            folders.remove(&name, &in_use)?;
            folders.collect()
        })
        .await
    }
}

impl Folders {
    fn remove(&self, name: &str, in_use: &[String]) -> Result<(), ImageError> {
        let _work = self.work()?;
        let used: HashSet<Digest> = in_use
            .iter()
            .filter_map(|image| self.find(image).ok())
            .map(|(image, _)| image.manifest_digest)
            .collect();
        let (image, info) = self.find(name)?;
        let manifest = image.manifest_digest;
        if used.contains(&manifest) {
            return Err(ImageError::InUse(name.to_owned()));
        }
        // A digest stands for all names, a name for itself.
        let gone = |entry: &str| {
            if Digest::parse(name).is_some() {
                return info.names.iter().any(|other| other == entry);
            }
            match (ImageRef::parse(name), ImageRef::parse(entry)) {
                (Ok(wanted), Ok(named)) if wanted.tag().is_none() => named.same_repository(&wanted),
                (Ok(wanted), Ok(named)) => named.same_image(&wanted),
                _ => false,
            }
        };
        self.index.update(|entries| {
            entries.retain(|entry| entry.manifest != manifest || !gone(&entry.name));
            Ok(())
        })
    }

    /// Deletes the blobs and layers that no image has, unless others are at work.
    pub(super) fn collect(&self) -> Result<(), ImageError> {
        let Some(_alone) = self.alone()? else {
            tracing::debug!("the image store is in use; unused blobs are deleted another time");
            return Ok(());
        };
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        for entry in self.index.read()? {
            let image = self.load(&entry.manifest)?;
            blobs.extend([entry.manifest, image.config_digest]);
            for layer in image.layers {
                blobs.insert(layer.blob);
                layers.insert(layer.diff_id);
            }
        }
        for name in layer::names(self.blobs.dir())? {
            let digest = Digest::parse(&format!("sha256:{name}"));
            if !digest.is_some_and(|digest| blobs.contains(&digest)) {
                remove_any(&self.blobs.dir().join(name));
            }
        }
        self.layers.collect(&|diff_id| layers.contains(diff_id))
    }
}
