//! The 19.03 front-end as the manager sees it: bytes on sockets, keys in etcd, hashes in Redis.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod aiozmq;
mod options;
mod rpc;
mod serve;
mod services;
mod stub;
