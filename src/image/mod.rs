//! The node's image store for engines without one of their own: an OCI layout with unpacked layers.
//!
//! ```text
//! <state-dir>/images/   oci-layout, index.json, blobs/sha256/<hex>     what was pulled or imported, by digest
//! <state-dir>/layers/   sha256/<diff id>/fs                            what containers are made of, as overlay lowers
//! ```
//!
//! Any number of processes may work on one store: files appear by rename, `index.json` changes under a file lock, and
//! whoever uses something holds a shared lock on it. What a dead process left behind goes at the next [`Store::open`].

mod archive;
mod blob;
mod collect;
mod credential;
mod digest;
mod error;
mod import;
mod index;
mod layer;
mod lock;
mod manifest;
mod platform;
mod pull;
mod reference;
mod rootfs;
mod store;
mod unpack;

pub use self::digest::Digest;
pub use self::error::ImageError;
pub use self::import::{ImportOptions, RootfsOptions};
pub use self::platform::Platform;
pub use self::pull::{PullOptions, PullProgress};
pub use self::reference::ImageRef;
pub use self::store::{PreparedImage, Store};
pub use self::unpack::UnpackLimits;
