//! What a node has and who holds it: slots, allocations and ports, as leases that free themselves.

pub mod alloc;
pub mod device;
pub mod port;
pub mod slot;
pub mod spec;
