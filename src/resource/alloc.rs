//! Discrete and fractional allocation of slots over devices, as leases that free themselves (19.03 agent,
//! `resources.py`, the two allocation maps with their numbers).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rust_decimal::Decimal;

use super::device::{ComputeDevice, DeviceEffects, DeviceShares, Policy};
use super::slot::{SlotAmounts, SlotUnit};
use crate::agent::AgentError;
use crate::runtime::Limits;

/// Who holds what: kind of device → slot → device id → amount.
pub type Allocation = BTreeMap<String, DeviceShares>;

/// The slots that every kernel must ask for.
const REQUIRED: [&str; 2] = ["cpu", "mem"];

/// Deals out the node's devices. Clones share the same devices.
#[derive(Clone, Debug)]
pub struct Allocator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    devices: Vec<Box<dyn ComputeDevice>>,
    /// Slot name to its state; held for a few lines only, never across an await.
    slots: Mutex<BTreeMap<String, SlotState>>,
}

#[derive(Debug)]
struct SlotState {
    kind: &'static str,
    unit: SlotUnit,
    policy: Policy,
    /// Device id, capacity and used amount, in the devices' order.
    devices: Vec<(String, Decimal, Decimal)>,
}

/// A held allocation; dropping it frees the amounts.
#[derive(Debug)]
pub struct AllocationLease {
    allocator: Allocator,
    allocation: Allocation,
}

impl AllocationLease {
    /// What is held.
    #[must_use]
    pub fn allocation(&self) -> &Allocation {
        &self.allocation
    }
}

impl Drop for AllocationLease {
    fn drop(&mut self) {
        self.allocator.change(&self.allocation, |used, amount| {
            (used - amount).max(Decimal::ZERO)
        });
    }
}

impl Allocator {
    /// Deals out these devices.
    #[must_use]
    pub fn new(devices: Vec<Box<dyn ComputeDevice>>) -> Self {
        let mut slots = BTreeMap::new();
        for device in &devices {
            for slot in device.slots() {
                let by_device = slot
                    .capacity
                    .into_iter()
                    .map(|(id, capacity)| (id, capacity, Decimal::ZERO))
                    .collect();
                let state = SlotState {
                    kind: device.kind(),
                    unit: slot.unit,
                    policy: device.policy(),
                    devices: by_device,
                };
                slots.insert(slot.name, state);
            }
        }
        Self(Arc::new(Inner {
            devices,
            slots: Mutex::new(slots),
        }))
    }

    /// Takes what is asked for, or nothing at all.
    ///
    /// # Errors
    /// [`AgentError::MissingSlot`] without `cpu` or `mem`; [`AgentError::UnknownDevice`] when more than zero is asked
    /// of a kind that this node lacks; [`AgentError::InsufficientResource`] when too little is free.
    pub fn allocate(&self, wanted: &SlotAmounts) -> Result<AllocationLease, AgentError> {
        if let Some(missing) = REQUIRED.into_iter().find(|slot| wanted.get(slot).is_none()) {
            return Err(AgentError::MissingSlot(missing));
        }
        let mut allocation = Allocation::new();
        let mut slots = self.0.slots.lock().expect("no panic while held");
        for (name, amount) in wanted.iter() {
            let Some(state) = slots.get(name) else {
                if amount.value().is_zero() {
                    continue;
                }
                let kind = name.split('.').next().unwrap_or(name);
                return Err(AgentError::UnknownDevice(kind.to_owned()));
            };
            let shares = state.deal(name, amount.value())?;
            allocation
                .entry(state.kind.to_owned())
                .or_default()
                .insert(name.to_owned(), shares);
        }
        apply(&mut slots, &allocation, |used, amount| used + amount);
        drop(slots);
        Ok(AllocationLease {
            allocator: self.clone(),
            allocation,
        })
    }

    /// Takes exactly this, for a kernel that was there before the agent was; more than there is, if need be.
    #[must_use]
    pub fn adopt(&self, allocation: Allocation) -> AllocationLease {
        self.change(&allocation, |used, amount| used + amount);
        AllocationLease {
            allocator: self.clone(),
            allocation,
        }
    }

    /// Every slot's unit and total, as the heartbeat shows them.
    #[must_use]
    pub fn node_slots(&self) -> BTreeMap<String, (SlotUnit, String)> {
        let slots = self.0.slots.lock().expect("no panic while held");
        let total = |state: &SlotState| {
            state
                .devices
                .iter()
                .map(|(_, capacity, _)| capacity)
                .sum::<Decimal>()
        };
        slots
            .iter()
            .map(|(name, state)| {
                (
                    name.clone(),
                    (state.unit, total(state).normalize().to_string()),
                )
            })
            .collect()
    }

    /// The unit of a slot, where the node knows it.
    #[must_use]
    pub fn unit(&self, slot: &str) -> Option<SlotUnit> {
        self.0
            .slots
            .lock()
            .expect("no panic while held")
            .get(slot)
            .map(|state| state.unit)
    }

    /// What an allocation adds to a container, over all kinds of devices.
    #[must_use]
    pub fn effects(&self, allocation: &Allocation) -> DeviceEffects {
        let mut all = DeviceEffects::default();
        for device in &self.0.devices {
            let Some(shares) = allocation.get(device.kind()) else {
                continue;
            };
            let one = device.effects(shares);
            all.limits = merge(all.limits, one.limits);
            all.mounts.extend(one.mounts);
            all.devices.extend(one.devices);
            all.env.extend(one.env);
            all.resource_lines.extend(one.resource_lines);
            all.cores = all.cores.or(one.cores);
        }
        all
    }

    fn change(&self, allocation: &Allocation, change: impl Fn(Decimal, Decimal) -> Decimal) {
        apply(
            &mut self.0.slots.lock().expect("no panic while held"),
            allocation,
            change,
        );
    }
}

/// Changes the used amounts by an allocation; devices that are gone are passed over.
fn apply(
    slots: &mut BTreeMap<String, SlotState>,
    allocation: &Allocation,
    change: impl Fn(Decimal, Decimal) -> Decimal,
) {
    for (slot, shares) in allocation.values().flatten() {
        let Some(state) = slots.get_mut(slot) else {
            continue;
        };
        for (id, _, used) in &mut state.devices {
            if let Some(amount) = shares.get(id) {
                *used = change(*used, *amount);
            }
        }
    }
}

fn merge(a: Limits, b: Limits) -> Limits {
    Limits {
        cpu_quota_us: a.cpu_quota_us.or(b.cpu_quota_us),
        cpu_period_us: a.cpu_period_us.or(b.cpu_period_us),
        cpuset: a.cpuset.or(b.cpuset),
        memory_bytes: a.memory_bytes.or(b.memory_bytes),
        swap_bytes: a.swap_bytes.or(b.swap_bytes),
        pids: a.pids.or(b.pids),
        shm_bytes: a.shm_bytes.or(b.shm_bytes),
    }
}

impl SlotState {
    /// Takes from the freest devices first (ties in the devices' order); a request of zero names the freest device.
    fn deal(&self, slot: &str, wanted: Decimal) -> Result<BTreeMap<String, Decimal>, AgentError> {
        let wanted = match self.policy {
            Policy::Discrete => wanted.trunc(),
            Policy::Fraction => wanted,
        };
        let mut free: Vec<(&String, Decimal)> = self
            .devices
            .iter()
            .map(|(id, capacity, used)| (id, (capacity - used).max(Decimal::ZERO)))
            .collect();
        free.sort_by_key(|(_, amount)| std::cmp::Reverse(*amount));
        let available: Decimal = free.iter().map(|(_, amount)| amount).sum();
        if available < wanted {
            return Err(AgentError::InsufficientResource {
                map: match self.policy {
                    Policy::Discrete => "DiscretePropertyAllocMap",
                    Policy::Fraction => "FractionAllocMap",
                },
                device: self.kind.to_owned(),
                slot: slot.to_owned(),
                requested: wanted.normalize().to_string(),
                available: available.normalize().to_string(),
            });
        }
        let mut remaining = wanted;
        let mut shares = BTreeMap::new();
        for (id, amount) in free {
            let share = remaining.min(amount);
            remaining -= share;
            shares.insert(id.clone(), share);
            if remaining.is_zero() {
                break;
            }
        }
        Ok(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::device::{Cpu, DeviceSlot, Memory};
    use crate::resource::slot::Amount;

    fn node(cores: usize) -> Allocator {
        Allocator::new(vec![
            Box::new(Cpu::new((0..cores).collect())),
            Box::new(Memory::new(1 << 30)),
        ])
    }

    fn ask(cpu: &str, mem: &str) -> SlotAmounts {
        [("cpu", cpu), ("mem", mem)]
            .map(|(slot, amount)| (slot.to_owned(), Amount::parse(amount).expect("an amount")))
            .into_iter()
            .collect()
    }

    fn cores(lease: &AllocationLease) -> Vec<(String, String)> {
        lease.allocation()["cpu"]["cpu"]
            .iter()
            .map(|(core, n)| (core.clone(), n.to_string()))
            .collect()
    }

    fn pairs(items: &[(&str, &str)]) -> Vec<(String, String)> {
        items
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn shares_are_dealt_as_the_original_deals_them() {
        let node = node(4);
        let leases: Vec<_> = ["1", "1", "3", "2"]
            .map(|n| node.allocate(&ask(n, "0")).expect("room"))
            .into();
        let dealt: Vec<_> = leases.iter().map(cores).collect();
        assert_eq!(
            dealt,
            [
                pairs(&[("0", "1")]),
                pairs(&[("1", "1")]),
                pairs(&[("2", "2"), ("3", "1")]),
                pairs(&[("0", "1"), ("1", "1")])
            ]
        );
    }

    #[test]
    fn two_slots_on_an_idle_node_are_one_core() {
        let lease = node(2).allocate(&ask("2", "0")).expect("room");
        assert_eq!(cores(&lease), pairs(&[("0", "2")]));
    }

    #[test]
    fn a_request_of_zero_names_the_freest_device() {
        let node = node(2);
        let _first = node.allocate(&ask("1", "0")).expect("room");
        assert_eq!(
            cores(&node.allocate(&ask("0", "0")).expect("room")),
            pairs(&[("1", "0")])
        );
    }

    #[test]
    fn a_refused_request_takes_nothing_and_a_dropped_lease_gives_back() {
        let node = node(2);
        let too_much = node.allocate(&ask("2", "2000000000"));
        let Err(AgentError::InsufficientResource {
            map,
            device,
            requested,
            available,
            ..
        }) = too_much
        else {
            panic!("memory must not suffice")
        };
        assert_eq!((map, device.as_str()), ("DiscretePropertyAllocMap", "mem"));
        assert_eq!(
            (requested.as_str(), available.as_str()),
            ("2000000000", "1073741824")
        );
        let whole = node
            .allocate(&ask("4", "1073741824"))
            .expect("nothing was taken");
        assert!(node.allocate(&ask("1", "0")).is_err());
        drop(whole);
        assert!(node.allocate(&ask("1E+0", "0")).is_ok());
    }

    #[test]
    fn cpu_and_mem_must_be_asked_for_and_other_kinds_must_exist() {
        let node = node(1);
        let no_mem: SlotAmounts = [("cpu".to_owned(), Decimal::ONE)].into_iter().collect();
        assert!(matches!(
            node.allocate(&no_mem),
            Err(AgentError::MissingSlot("mem"))
        ));
        let mut gpu = ask("1", "1");
        gpu.insert("cuda.device".into(), Decimal::ZERO);
        assert!(node.allocate(&gpu).is_ok());
        gpu.insert("cuda.device".into(), Decimal::ONE);
        assert!(
            matches!(node.allocate(&gpu), Err(AgentError::UnknownDevice(kind)) if kind == "cuda")
        );
    }

    #[test]
    fn kernels_that_share_a_core_are_adopted_side_by_side() {
        let node = node(1);
        let first = node
            .allocate(&ask("1", "100"))
            .expect("room")
            .allocation()
            .clone();
        let (_a, _b) = (node.adopt(first.clone()), node.adopt(first));
        assert!(matches!(
            node.allocate(&ask("1", "0")),
            Err(AgentError::InsufficientResource { .. })
        ));
    }

    #[derive(Debug)]
    struct Halves;

    impl ComputeDevice for Halves {
        fn kind(&self) -> &'static str {
            "cuda"
        }
        fn slots(&self) -> Vec<DeviceSlot> {
            let capacity = vec![("0".into(), Decimal::ONE), ("1".into(), Decimal::ONE)];
            vec![DeviceSlot {
                name: "cuda.shares".into(),
                unit: SlotUnit::Count,
                capacity,
            }]
        }
        fn policy(&self) -> Policy {
            Policy::Fraction
        }
        fn effects(&self, _shares: &DeviceShares) -> DeviceEffects {
            DeviceEffects::default()
        }
    }

    #[test]
    fn fractions_are_dealt_over_devices() {
        let devices: Vec<Box<dyn ComputeDevice>> = vec![
            Box::new(Cpu::new(vec![0])),
            Box::new(Memory::new(1)),
            Box::new(Halves),
        ];
        let node = Allocator::new(devices);
        let mut slots = ask("0", "0");
        slots.insert(
            "cuda.shares".into(),
            Amount::parse("1.5").expect("an amount"),
        );
        let lease = node.allocate(&slots).expect("room");
        let shares = &lease.allocation()["cuda"]["cuda.shares"];
        assert_eq!(shares["0"].to_string(), "1");
        assert_eq!(shares["1"].to_string(), "0.5");
        assert!(matches!(
            node.allocate(&slots),
            Err(AgentError::InsufficientResource {
                map: "FractionAllocMap",
                ..
            })
        ));
    }
}
