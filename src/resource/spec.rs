//! What a kernel was given, as the text of `resource.txt` (19.03 agent, `KernelResourceSpec`): the record from which a
//! restarted agent takes its kernels back.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::alloc::{Allocation, Allocator};
use super::slot::{Amount, SlotAmounts, SlotUnit, parse_size};

/// Idle time limit when the text does not give one, s.
const DEFAULT_IDLE_TIMEOUT: u64 = 600;

/// What a kernel was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSpec {
    /// The engine's id of the container, once there is one.
    pub container: Option<String>,
    /// Virtual folders.
    pub mounts: Vec<MountRecord>,
    /// What was asked for.
    pub slots: SlotAmounts,
    /// Seconds without use after which the kernel ends; 0 is never.
    pub idle_timeout: u64,
    /// What it holds.
    pub allocation: Allocation,
    /// Lines of accelerators.
    pub extra: Vec<(String, String)>,
}

/// One virtual folder, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRecord {
    /// Path on the host.
    pub host: String,
    /// Path in the container.
    pub container: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

impl MountRecord {
    fn to_text(&self) -> String {
        format!(
            "{}:{}:{}",
            self.host,
            self.container,
            if self.read_only { "ro" } else { "rw" }
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(3, ':');
        let (permission, container, host) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            host: host.to_owned(),
            container: container.to_owned(),
            read_only: permission == "ro",
        })
    }
}

/// The text is not that of a `resource.txt`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A line has no `=`.
    #[error("line {0:?} has no '='")]
    Line(String),
    /// A line that must be there is not.
    #[error("line {0} is missing")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("{key}: cannot read {value:?}")]
    Value {
        /// The line's key.
        key: String,
        /// Its value.
        value: String,
    },
}

impl ResourceSpec {
    /// The text, with the units of this node's slots.
    #[must_use]
    pub fn to_text(&self, node: &Allocator) -> String {
        let mounts: Vec<String> = self.mounts.iter().map(MountRecord::to_text).collect();
        let mut text = format!(
            "CID={}\nSCRATCH_SIZE=0m\nMOUNTS={}\nSLOTS={}\nIDLE_TIMEOUT={}\n",
            self.container.as_deref().unwrap_or("None"),
            mounts.join(","),
            self.slots.to_json(),
            self.idle_timeout,
        );
        for (slot, shares) in self.allocation.values().flatten() {
            let unit = node.unit(slot).unwrap_or(SlotUnit::Count);
            let items: Vec<String> = shares
                .iter()
                .map(|(id, n)| format!("{id}:{}", unit.format(*n)))
                .collect();
            text.push_str(&format!(
                "{}_SHARES={}\n",
                slot.to_uppercase(),
                items.join(",")
            ));
        }
        for (key, value) in &self.extra {
            text.push_str(&format!("{key}={value}\n"));
        }
        text
    }

    /// Reads the text; slots that this node does not know are passed over.
    ///
    /// # Errors
    /// When a line has no `=`, a needed line is missing or a value cannot be read.
    pub fn parse(text: &str, node: &Allocator) -> Result<Self, InvalidSpec> {
        let mut lines = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| InvalidSpec::Line(line.to_owned()))?;
            lines.insert(key.to_owned(), value.to_owned());
        }
        let mut take = |key: &'static str| lines.remove(key).ok_or(InvalidSpec::Missing(key));
        take("SCRATCH_SIZE")?;
        let slots = parse_slots(&take("SLOTS")?)?;
        let mounts = parse_mounts(&take("MOUNTS")?)?;
        let container = take("CID").ok().filter(|id| id != "None");
        let idle_timeout = match take("IDLE_TIMEOUT") {
            Ok(value) => value.parse().map_err(|_| invalid("IDLE_TIMEOUT", &value))?,
            Err(_) => DEFAULT_IDLE_TIMEOUT,
        };
        let mut spec = Self {
            container,
            mounts,
            slots,
            idle_timeout,
            ..Self::default()
        };
        for (key, value) in lines {
            match key.strip_suffix("_SHARES") {
                Some(slot) => spec.add_shares(&slot.to_lowercase(), &key, &value, node)?,
                None => spec.extra.push((key, value)),
            }
        }
        Ok(spec)
    }

    /// The slots that a text asks for, whatever else is in it; `None` where it does not say.
    #[must_use]
    pub fn slots_of(text: &str) -> Option<SlotAmounts> {
        let line = text.lines().find_map(|line| line.strip_prefix("SLOTS="))?;
        parse_slots(line).ok()
    }

    fn add_shares(
        &mut self,
        slot: &str,
        key: &str,
        value: &str,
        node: &Allocator,
    ) -> Result<(), InvalidSpec> {
        let Some(unit) = node.unit(slot) else {
            tracing::warn!(
                slot,
                "resource.txt names a slot that this node does not know"
            );
            return Ok(());
        };
        let mut shares = BTreeMap::new();
        for item in value.split(',') {
            let Some((device, amount)) = item
                .split_once(':')
                .filter(|(d, a)| !d.is_empty() && !a.is_empty())
            else {
                continue;
            };
            let amount = match unit {
                SlotUnit::Bytes => parse_size(amount),
                SlotUnit::Count => Amount::parse(amount).map(|amount| amount.value()),
            };
            shares.insert(device.to_owned(), amount.map_err(|_| invalid(key, value))?);
        }
        self.make_exact(slot, unit, &mut shares);
        let kind = slot.split('.').next().unwrap_or(slot);
        self.allocation
            .entry(kind.to_owned())
            .or_default()
            .insert(slot.to_owned(), shares);
        Ok(())
    }

    /// Byte amounts are written rounded; what was asked for is exact, and one device holds all of it.
    fn make_exact(&self, slot: &str, unit: SlotUnit, shares: &mut BTreeMap<String, Decimal>) {
        if let (SlotUnit::Bytes, 1, Some(asked)) = (unit, shares.len(), self.slots.get(slot))
            && let Some(amount) = shares.values_mut().next()
        {
            *amount = asked.value().trunc();
        }
    }

    /// The JSON text that `create_kernel` returns as `resource_spec`; `slots` is the last slot's amount alone, as in
    /// 19.03, where nothing reads it.
    #[must_use]
    pub fn to_json(&self, node: &Allocator) -> String {
        let unit = |slot: &str| node.unit(slot).unwrap_or(SlotUnit::Count);
        let mut allocations = Map::new();
        for (kind, slots) in &self.allocation {
            let mut by_slot = Map::new();
            for (slot, shares) in slots {
                let shares: Map<String, Value> = shares
                    .iter()
                    .map(|(id, n)| (id.clone(), unit(slot).format(*n).into()))
                    .collect();
                by_slot.insert(slot.clone(), shares.into());
            }
            allocations.insert(kind.clone(), by_slot.into());
        }
        let last = self
            .slots
            .iter()
            .last()
            .map(|(slot, amount)| unit(slot).format(amount.value()));
        let mounts: Vec<Value> = self
            .mounts
            .iter()
            .map(|mount| mount.to_text().into())
            .collect();
        let mut all = Map::new();
        all.insert("container_id".into(), self.container.clone().into());
        all.insert("slots".into(), last.into());
        all.insert("allocations".into(), allocations.into());
        all.insert("mounts".into(), mounts.into());
        all.insert("scratch_disk_size".into(), 0.into());
        all.insert("idle_timeout".into(), self.idle_timeout.into());
        Value::from(all).to_string()
    }
}

fn invalid(key: &str, value: &str) -> InvalidSpec {
    InvalidSpec::Value {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn parse_slots(text: &str) -> Result<SlotAmounts, InvalidSpec> {
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| invalid("SLOTS", text))?;
    object
        .into_iter()
        .map(|(slot, amount)| {
            let amount = amount
                .as_str()
                .and_then(|amount| Amount::parse(amount).ok());
            Ok((slot, amount.ok_or_else(|| invalid("SLOTS", text))?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map(|slots| slots.into_iter().collect())
}

fn parse_mounts(text: &str) -> Result<Vec<MountRecord>, InvalidSpec> {
    let items = text.split(',').filter(|item| !item.is_empty());
    items
        .map(|item| MountRecord::parse(item).ok_or_else(|| invalid("MOUNTS", text)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::device::{Cpu, Memory};

    const EXAMPLE: &str = "CID=c88fe72fe87bb88a62d2eff94ace9b682070dfbf3248e6bbfe28c9bb7ef743e5\n\
        SCRATCH_SIZE=0m\n\
        MOUNTS=/mnt/local/pfx/0123456789abcdef0123456789abcdef:/home/work/data:rw\n\
        SLOTS={\"cpu\": \"2\", \"mem\": \"1234567890\"}\n\
        IDLE_TIMEOUT=3600\n\
        CPU_SHARES=1:2\n\
        MEM_SHARES=root:1.15g\n";

    fn node() -> Allocator {
        Allocator::new(vec![
            Box::new(Cpu::new(vec![0, 1])),
            Box::new(Memory::new(8 << 30)),
        ])
    }

    #[test]
    fn the_text_of_the_original_is_read_and_written_to_the_byte() {
        let spec = ResourceSpec::parse(EXAMPLE, &node()).expect("the original's text");
        assert_eq!(spec.to_text(&node()), EXAMPLE);
        assert_eq!(spec.idle_timeout, 3600);
        assert!(!spec.mounts[0].read_only);
    }

    #[test]
    fn the_slots_are_read_also_from_a_text_that_is_damaged_elsewhere() {
        let wanted = ResourceSpec::parse(EXAMPLE, &node()).expect("the original's text");
        let damaged = EXAMPLE.replace("SCRATCH_SIZE=0m", "oops");
        assert_eq!(ResourceSpec::slots_of(&damaged), Some(wanted.slots));
        assert_eq!(ResourceSpec::slots_of("SLOTS=oops\n"), None);
    }

    #[test]
    fn rounded_bytes_come_back_exact() {
        let spec = ResourceSpec::parse(EXAMPLE, &node()).expect("the original's text");
        assert_eq!(
            spec.allocation["mem"]["mem"]["root"],
            Decimal::from(1_234_567_890)
        );
    }

    #[test]
    fn before_there_is_a_container_the_text_says_none() {
        let spec = ResourceSpec::default();
        assert!(
            spec.to_text(&node())
                .starts_with("CID=None\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={}\n")
        );
        assert_eq!(
            ResourceSpec::parse(&spec.to_text(&node()), &node()),
            Ok(spec)
        );
    }

    #[test]
    fn a_damaged_text_is_refused_by_its_line() {
        let node = node();
        assert_eq!(
            ResourceSpec::parse("oops\n", &node),
            Err(InvalidSpec::Line("oops".into()))
        );
        assert_eq!(
            ResourceSpec::parse("SCRATCH_SIZE=0m\n", &node),
            Err(InvalidSpec::Missing("SLOTS"))
        );
        let bad = EXAMPLE.replace("1:2", "1:x");
        assert!(
            matches!(ResourceSpec::parse(&bad, &node), Err(InvalidSpec::Value { key, .. }) if key == "CPU_SHARES")
        );
        let unknown = format!("{EXAMPLE}CUDA.DEVICE_SHARES=0:1\n");
        assert!(ResourceSpec::parse(&unknown, &node).is_ok());
    }

    #[test]
    fn the_json_has_the_originals_keys_in_order() {
        let json = ResourceSpec::parse(EXAMPLE, &node())
            .expect("the original's text")
            .to_json(&node());
        let start = r#"{"container_id":"c88fe72fe87bb88a62d2eff94ace9b682070dfbf3248e6bbfe28c9bb7ef743e5","slots":"1.15g","#;
        assert!(json.starts_with(start), "{json}");
        assert!(
            json.contains(
                r#""allocations":{"cpu":{"cpu":{"1":"2"}},"mem":{"mem":{"root":"1.15g"}}}"#
            ),
            "{json}"
        );
        assert!(
            json.ends_with(r#""scratch_disk_size":0,"idle_timeout":3600}"#),
            "{json}"
        );
    }
}
