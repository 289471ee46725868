//! Kinds of compute devices: what a node has of each, and what an allocated share means for a container.
//!
//! An accelerator is one more implementation of [`ComputeDevice`]; nothing else knows its name.

use std::collections::BTreeMap;
use std::fmt;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::slot::SlotUnit;
use crate::runtime::{DeviceNode, Limits, Mount};

/// Shares by device: slot name → device id → amount.
pub type DeviceShares = BTreeMap<String, BTreeMap<String, Decimal>>;

/// How amounts are dealt out over the devices of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whole numbers (19.03 `DiscretePropertyAllocMap`).
    Discrete,
    /// Decimal fractions (19.03 `FractionAllocMap`).
    Fraction,
}

/// What an allocation adds to a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceEffects {
    /// Limits; only the fields of this kind of device are set.
    pub limits: Limits,
    /// Mounts, such as driver libraries.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Lines of `resource.txt`.
    pub resource_lines: Vec<(String, String)>,
    /// How many processor cores it stands for, where it stands for any.
    pub cores: Option<usize>,
}

/// One kind of compute device of this node.
pub trait ComputeDevice: Send + Sync + fmt::Debug {
    /// The kind's name: the text before the first dot of its slots.
    fn kind(&self) -> &'static str;
    /// Its slots, their units and, for each of its devices in order, the capacity.
    fn slots(&self) -> Vec<DeviceSlot>;
    /// How amounts are dealt out.
    fn policy(&self) -> Policy;
    /// What shares of it mean for a container.
    fn effects(&self, shares: &DeviceShares) -> DeviceEffects;
}

/// One slot of a kind of device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// `cpu`, `mem`, `cuda.device`.
    pub name: String,
    /// Unit of its amounts.
    pub unit: SlotUnit,
    /// Device id and capacity, in order.
    pub capacity: Vec<(String, Decimal)>,
}

/// The node's processor cores; each offers two shares (19.03's fixed over-commit).
#[derive(Clone, Debug)]
pub struct Cpu {
    cores: Vec<usize>,
}

impl Cpu {
    /// For the cores with these numbers.
    #[must_use]
    pub fn new(cores: Vec<usize>) -> Self {
        Self { cores }
    }

    /// The cores that this process may run on.
    ///
    /// # Errors
    /// When Linux does not tell.
    pub fn detect() -> std::io::Result<Self> {
        let set = rustix::thread::sched_getaffinity(None)?;
        Ok(Self::new(
            (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|core| set.is_set(*core))
                .collect(),
        ))
    }
}

/// Shares that one core offers.
const SHARES_PER_CORE: i64 = 2;
/// Length of a scheduling period, µs.
const CPU_PERIOD_US: u64 = 100_000;

impl ComputeDevice for Cpu {
    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn slots(&self) -> Vec<DeviceSlot> {
        let capacity = self
            .cores
            .iter()
            .map(|core| (core.to_string(), SHARES_PER_CORE.into()))
            .collect();
        vec![DeviceSlot {
            name: "cpu".into(),
            unit: SlotUnit::Count,
            capacity,
        }]
    }

    fn policy(&self) -> Policy {
        Policy::Discrete
    }

    /// One full core of time for each distinct core, pinned to those cores (19.03 intrinsic.py).
    fn effects(&self, shares: &DeviceShares) -> DeviceEffects {
        let mut cores: Vec<usize> = shares
            .values()
            .flat_map(BTreeMap::keys)
            .filter_map(|core| core.parse().ok())
            .collect();
        cores.sort_unstable();
        cores.dedup();
        let quota = i64::try_from(cores.len())
            .unwrap_or(i64::MAX)
            .saturating_mul(100_000);
        let list: Vec<String> = cores.iter().map(ToString::to_string).collect();
        let limits = Limits {
            cpu_quota_us: Some(quota),
            cpu_period_us: Some(CPU_PERIOD_US),
            cpuset: Some(list.join(",")),
            ..Limits::default()
        };
        DeviceEffects {
            limits,
            cores: Some(cores.len()),
            ..DeviceEffects::default()
        }
    }
}

/// The node's memory: one device, `root`.
#[derive(Clone, Debug)]
pub struct Memory {
    bytes: u64,
}

impl Memory {
    /// For this many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The physical memory of this machine.
    #[must_use]
    pub fn detect() -> Self {
        let info = rustix::system::sysinfo();
        Self::new(u64::from(info.mem_unit).saturating_mul(info.totalram))
    }
}

impl ComputeDevice for Memory {
    fn kind(&self) -> &'static str {
        "mem"
    }

    fn slots(&self) -> Vec<DeviceSlot> {
        let capacity = vec![("root".into(), self.bytes.into())];
        vec![DeviceSlot {
            name: "mem".into(),
            unit: SlotUnit::Bytes,
            capacity,
        }]
    }

    fn policy(&self) -> Policy {
        Policy::Discrete
    }

    fn effects(&self, shares: &DeviceShares) -> DeviceEffects {
        let total: Decimal = shares.values().flat_map(BTreeMap::values).copied().sum();
        let limits = Limits {
            memory_bytes: total.to_i64().filter(|bytes| *bytes > 0),
            ..Limits::default()
        };
        DeviceEffects {
            limits,
            ..DeviceEffects::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(slot: &str, items: &[(&str, i64)]) -> DeviceShares {
        let by_device = items
            .iter()
            .map(|(device, amount)| ((*device).to_owned(), (*amount).into()))
            .collect();
        BTreeMap::from([(slot.to_owned(), by_device)])
    }

    #[test]
    fn a_core_gives_two_shares_and_one_core_of_time() {
        let cpu = Cpu::new(vec![0, 2]);
        assert_eq!(
            cpu.slots()[0].capacity,
            [("0".to_owned(), 2.into()), ("2".to_owned(), 2.into())]
        );
        let effects = cpu.effects(&shares("cpu", &[("0", 1), ("2", 2)]));
        assert_eq!(effects.limits.cpu_quota_us, Some(200_000));
        assert_eq!(effects.limits.cpuset.as_deref(), Some("0,2"));
        assert_eq!(effects.cores, Some(2));
    }

    #[test]
    fn memory_is_limited_to_what_was_allocated() {
        let effects = Memory::new(1 << 30).effects(&shares("mem", &[("root", 1 << 20)]));
        assert_eq!(effects.limits.memory_bytes, Some(1 << 20));
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        assert!(!Cpu::detect().expect("affinity").cores.is_empty());
        assert!(Memory::detect().bytes > 1 << 20);
    }
}
