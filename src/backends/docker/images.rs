//! The images that dockerd keeps.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use bollard::models::{ImageInspect, ImageSummary};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptions, ListImagesOptions, RemoveImageOptionsBuilder,
    TagImageOptionsBuilder,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::connect::{Client, message, status};
use super::there;
use crate::image::credentials::{self, Credentials};
use crate::image::{
    Bundle, ImageAdmin, ImageError, ImageRef, ImportOptions, Platform, PullOptions,
};
use crate::runtime::{ImageInfo, ImageStore, RegistryAuth, Result, RuntimeError};

/// How ids of images begin.
const ID: &str = "sha256:";

/// dockerd's images.
#[derive(Clone, Debug)]
pub(super) struct DockerImages {
    client: Client,
}

impl DockerImages {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn raw(&self, image: &str) -> Result<ImageInspect> {
        let call = self.client.api.inspect_image(image);
        let found = self
            .client
            .ask(format!("looking at image {image}"), call)
            .await;
        found.map_err(|error| match status(&error) {
            Some(404) => RuntimeError::ImageMissing(image.to_owned()),
            _ => error,
        })
    }

    /// An image under the name that it was asked by. dockerd writes some names shorter than the manager does.
    async fn named(&self, image: &str) -> Result<ImageInfo> {
        let mut info = info(self.raw(&ImageRef::key(image)?).await?);
        // An id is no name.
        if !image.starts_with(ID)
            && let Ok(asked) = ImageRef::parse(image)
        {
            asked.spell(&mut info.names);
        }
        Ok(info)
    }

    /// Gives an image that was pulled by its digest the name that it was asked by: dockerd does not.
    async fn tag(&self, name: &ImageRef) -> Result<()> {
        let (Some(tag), Some(digest)) = (name.tag(), name.digest()) else {
            return Ok(());
        };
        let options = TagImageOptionsBuilder::default()
            .repo(&name.path())
            .tag(tag)
            .build();
        let from = format!("{}@{digest}", name.path());
        let call = self.client.api.tag_image(&from, Some(options));
        self.client.act(format!("naming image {name}"), call).await
    }

    /// Loads an archive of `docker save`.
    async fn load(&self, bundle: &Arc<Bundle>, image: usize) -> Result<()> {
        let archive = Arc::clone(bundle).docker_save_stream(image);
        let loaded =
            self.client
                .api
                .import_image_stream(ImportImageOptions::default(), archive, None);
        let loaded = async {
            let done = loaded.try_for_each(|_| async { Ok(()) }).await;
            done.map_err(|error| self.client.failed("loading images", error))
        };
        self.client.watched(loaded).await
    }
}

#[async_trait]
impl ImageStore for DockerImages {
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        let call = self.client.api.list_images(None::<ListImagesOptions>);
        let all = self.client.ask("listing images", call).await?;
        let look = |image: ImageSummary| async move { self.raw(&image.id).await.map(info) };
        let mut all = there(all, look).await?;
        all.sort_by(|one, other| one.names.cmp(&other.names));
        Ok(all)
    }

    async fn inspect(&self, image: &str) -> Result<ImageInfo> {
        self.named(image).await
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo> {
        Ok(self.pull_with(image, &PullOptions::with(auth)).await?)
    }
}

#[async_trait]
impl ImageAdmin for DockerImages {
    async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let bundle = Bundle::read(path, name, options, &std::env::temp_dir()).await?;
        let bundle = Arc::new(bundle);
        let mut all = Vec::new();
        for (place, image) in bundle.images().iter().enumerate() {
            self.load(&bundle, place).await?;
            let key = image.names.first().unwrap_or(&image.config_digest);
            all.push(self.named(key).await?);
        }
        Ok(all)
    }

    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo, ImageError> {
        let name = ImageRef::parse(image)?;
        let wanted = name.digest().or(name.tag()).unwrap_or("latest");
        let mut query = CreateImageOptionsBuilder::default()
            .from_image(&name.path())
            .tag(wanted);
        let platform = platform(&options.platform);
        if let Some(platform) = &platform {
            query = query.platform(platform);
        }
        let credentials = credentials::of(&name, options.auth.as_ref()).await;
        let credentials = credentials.map(|found| login(&name, found));
        let mut news = self
            .client
            .api
            .create_image(Some(query.build()), None, credentials);
        let mut layers = HashMap::new();
        let pulled = async {
            while let Some(news) = news.next().await {
                let news = news.map_err(|error| {
                    pull_failed(image, self.client.failed(format!("pulling {image}"), error))
                })?;
                if let (Some(layer), Some(progress)) = (news.id, news.progress_detail)
                    && news.status.as_deref() == Some("Downloading")
                {
                    let bytes = |value: Option<i64>| {
                        value
                            .and_then(|value| u64::try_from(value).ok())
                            .unwrap_or_default()
                    };
                    layers.insert(layer, (bytes(progress.current), bytes(progress.total)));
                    options
                        .progress
                        .set_length(layers.values().map(|(_, total)| total).sum());
                    options
                        .progress
                        .set_position(layers.values().map(|(current, _)| current).sum());
                }
            }
            Ok::<_, ImageError>(())
        };
        self.client.watched(pulled).await?;
        if name.digest().is_some() && name.tag().is_some() {
            self.tag(&name).await?;
        }
        Ok(self.named(image).await?)
    }

    async fn export(&self, image: &str, scratch: &Path) -> Result<Bundle, ImageError> {
        let name = ImageRef::key(image)?;
        self.raw(&name).await?;
        let pieces = self.client.api.export_image(&name);
        let failed = |error| self.client.failed("reading an image", error).into();
        // An id is no name.
        let known_as = if name.starts_with(ID) {
            "exported"
        } else {
            image
        };
        let received = Bundle::receive(pieces.map_err(failed), known_as, scratch);
        self.client.watched(received).await
    }

    async fn remove(&self, image: &str) -> Result<(), ImageError> {
        let name = ImageRef::key(image)?;
        let by_id = name.starts_with(ID);
        if by_id {
            self.raw(&name).await?;
            let action = format!("looking for containers of {image}");
            let users = self
                .client
                .containers(action, Some(("ancestor", name.clone())));
            if !users.await?.is_empty() {
                return Err(ImageError::InUse(image.to_owned()));
            }
        }
        // By its id it goes with all its names, which dockerd calls force.
        let options = RemoveImageOptionsBuilder::default().force(by_id).build();
        let call = self.client.api.remove_image(&name, Some(options), None);
        let removed = self
            .client
            .act(format!("removing image {image}"), call)
            .await;
        removed.map(drop).map_err(|error| match status(&error) {
            Some(404) => ImageError::Missing(image.to_owned()),
            Some(409) => ImageError::InUse(image.to_owned()),
            _ => error.into(),
        })
    }
}

fn info(raw: ImageInspect) -> ImageInfo {
    let config = raw.config.unwrap_or_default();
    let digests = raw.repo_digests.unwrap_or_default();
    // With containerd's store an image that was pulled by its digest has that in place of a tag.
    let is_name = |name: &String| !name.contains("<none>") && !name.contains('@');
    let mut names: Vec<String> = raw
        .repo_tags
        .into_iter()
        .flatten()
        .filter(is_name)
        .collect();
    names.sort();
    let digest = digests
        .iter()
        .find_map(|name| Some(name.split_once('@')?.1.to_owned()));
    ImageInfo {
        names,
        id: raw.id.unwrap_or_default(),
        repo_digest: digest,
        labels: config.labels.into_iter().flatten().collect(),
        env: config.env.unwrap_or_default(),
        command: config
            .entrypoint
            .into_iter()
            .flatten()
            .chain(config.cmd.into_iter().flatten())
            .collect(),
        architecture: raw.architecture.unwrap_or_default(),
        size: raw
            .size
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or_default(),
    }
}

fn login(name: &ImageRef, found: Credentials) -> DockerCredentials {
    let mut login = DockerCredentials {
        serveraddress: Some(name.pull_registry().to_owned()),
        ..DockerCredentials::default()
    };
    match found {
        Credentials::Password(RegistryAuth { username, password }) => {
            login.username = Some(username);
            login.password = Some(password);
        }
        Credentials::IdentityToken(token) => login.identitytoken = Some(token),
        Credentials::RegistryToken(token) => login.registrytoken = Some(token),
    }
    login
}

/// A platform that is not this machine's: an old API knows no other and refuses even the question.
fn platform(wanted: &Platform) -> Option<String> {
    (*wanted != Platform::default()).then(|| wanted.to_string())
}

/// What the caller can do about a pull that failed; dockerd says it in words only.
fn pull_failed(image: &str, error: RuntimeError) -> ImageError {
    let text = message(&error).to_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    if matches!(error, RuntimeError::Unavailable { .. }) {
        error.into()
    } else if says(&[
        "unauthorized",
        "denied",
        "authentication required",
        "no basic auth",
    ]) {
        ImageError::Denied {
            image: image.to_owned(),
            source: Box::new(error),
        }
    } else if says(&[
        "manifest unknown",
        "not found",
        "name unknown",
        "name invalid",
    ]) {
        ImageError::NotInRegistry(image.to_owned())
    } else if says(&["no matching manifest"]) {
        ImageError::NoPlatform {
            image: image.to_owned(),
            wanted: Platform::default().to_string(),
            found: "none of it".to_owned(),
        }
    } else if says(&[
        "refused",
        "timeout",
        "no such host",
        "deadline",
        "unreachable",
        "eof",
        "reset by peer",
        "server gave",
    ]) {
        ImageError::Unreachable {
            what: image.to_owned(),
            source: Box::new(error),
        }
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_names_no_tag_is_no_name_whichever_store_tells_it() {
        let by_digest = format!("local/a@sha256:{}", "0a".repeat(32));
        let raw = json!({"Id": "sha256:1", "RepoTags": ["local/b:1", by_digest, "<none>:<none>", "local/a:1"]});
        let image = info(serde_json::from_value(raw).expect("a record"));
        assert_eq!(image.names, ["local/a:1", "local/b:1"]);
    }
}
