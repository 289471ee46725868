//! The node's image store as the source of root file systems.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Rootfs, RootfsSource};
use crate::image::Store;
use crate::runtime::Result;

#[async_trait]
impl RootfsSource for Arc<Store> {
    async fn prepare(&self, image: &str) -> Result<Rootfs> {
        let (store, name) = (Self::clone(self), image.to_owned());
        let prepare = move || Store::prepare(&store, &name);
        let prepared = tokio::task::spawn_blocking(prepare)
            .await
            .expect("unpacking does not panic and is not aborted")?;
        Ok(Rootfs {
            name: image.to_owned(),
            lowers: prepared.lowers,
            env: prepared.info.env,
        })
    }
}
