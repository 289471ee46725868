//! Linux: cgroups, mounts, namespaces, pidfd, /proc. The only folder of the agent with `unsafe`.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper live here, each with its SAFETY line"
)]

pub mod abi;
pub mod capability;
pub mod cgroup;
pub mod memory;
pub mod netns;
pub mod pidfd;
pub mod proc;
pub mod program;
pub mod rlimit;
pub mod rootfs;
pub mod signal;
pub mod userns;
