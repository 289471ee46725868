//! The Backend.AI node agent: runs computing sessions (*kernels*) in OCI containers on one node and answers to a
//! Backend.AI manager, whatever container engine the node has.
//!
//! ```text
//!  manager ──calls──▶ manager/v1903 ──Request──▶ agent ──▶ kernel ──▶ runtime (trait) ──▶ backends/{youki,containerd,docker} ──▶ sys
//!  manager ◀─events── manager/v1903 ◀──Event─────┴─────────┘
//! ```
//!
//! Manager generations are front-ends, engines are back-ends, the core between them knows neither. Calls go down,
//! events come up; a module uses what is below it and never what is above. `ARCHITECTURE.md` is the longer map.
#![deny(unsafe_code)]

pub mod agent;
pub mod backends;
pub mod cli;
pub mod config;
pub mod etcd;
pub mod image;
pub mod kernel;
pub mod krunner;
pub mod logging;
pub mod manager;
pub mod metrics;
pub mod resource;
pub mod rootless;
pub mod runtime;
pub mod stats;
pub mod sys;
