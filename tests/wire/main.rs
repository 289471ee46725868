//! The 19.03 front-end as the manager sees it: bytes on sockets, keys in etcd, hashes in Redis.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that fails may panic, and owns its tasks and its environment"
)]

mod aiozmq;
mod options;
mod rpc;
mod serve;
mod services;
mod stub;
