//! What a node has and who holds it: slots, allocations and ports, as leases that free themselves.

pub mod slot;
