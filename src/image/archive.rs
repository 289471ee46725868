//! Import of `docker save` archives and of OCI archives and folders.

use std::path::Path;

use super::store::Folders;
use super::{ImageError, ImageRef, UnpackLimits};
use crate::runtime::ImageInfo;

pub(super) fn import_folder(
    _: &Folders,
    path: &Path,
    _: Option<&ImageRef>,
    _: UnpackLimits,
) -> Result<Vec<ImageInfo>, ImageError> {
    Err(ImageError::malformed(path.display().to_string(), "not yet"))
}
pub(super) fn import_archive(
    _: &Folders,
    path: &Path,
    _: Option<&ImageRef>,
    _: UnpackLimits,
) -> Result<Vec<ImageInfo>, ImageError> {
    Err(ImageError::malformed(path.display().to_string(), "not yet"))
}
