//! Names and amounts of resource slots and their text forms.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

/// What a slot's amount counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotUnit {
    /// Pieces, or shares of pieces.
    Count,
    /// Bytes.
    Bytes,
}

/// Slot name (`cpu`, `mem`, `cuda.device`) to amount, in the order of names.
pub type SlotAmounts = BTreeMap<String, Decimal>;
