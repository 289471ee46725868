//! The image store from outside: archives of all kinds, good and hostile, and registries on loopback.

mod archives;
mod hostile;
mod pulling;
mod registry;
mod rootfs;
mod store;
mod tars;
