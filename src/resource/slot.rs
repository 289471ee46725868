//! Names and amounts of resource slots and their text forms (19.03 common, `BinarySize` and `ResourceSlot`).

use std::fmt;

use rust_decimal::prelude::ToPrimitive;
use rust_decimal::{Decimal, RoundingStrategy};

/// What a slot's amount counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotUnit {
    /// Pieces, or shares of pieces.
    Count,
    /// Bytes.
    Bytes,
}

impl SlotUnit {
    /// The unit's name in heartbeats.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
        }
    }

    /// An amount as `resource.txt` shows it: plain for counts, [short](short_size) for bytes.
    #[must_use]
    pub fn format(self, amount: Decimal) -> String {
        match self {
            Self::Count => amount.normalize().to_string(),
            Self::Bytes => short_size(amount),
        }
    }
}

/// The text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an amount: give a decimal number such as 2, 0.5 or 1E+1, or a size such as 512m"
)]
pub struct InvalidAmount(pub String);

/// An amount with the text it was given as: the manager's own form (`1E+1`) is what goes into files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    value: Decimal,
    text: String,
}

impl Amount {
    /// Reads a decimal number, exponents included.
    ///
    /// # Errors
    /// When the text is not a finite number that is zero or more.
    pub fn parse(text: &str) -> Result<Self, InvalidAmount> {
        let trimmed = text.trim();
        let value = decimal(trimmed).filter(|value| !value.is_sign_negative() || value.is_zero());
        let value = value.ok_or_else(|| InvalidAmount(text.to_owned()))?;
        Ok(Self {
            value,
            text: trimmed.trim_start_matches('+').to_owned(),
        })
    }

    /// The number.
    #[must_use]
    pub fn value(&self) -> Decimal {
        self.value
    }
}

impl From<Decimal> for Amount {
    fn from(value: Decimal) -> Self {
        Self {
            value,
            text: value.to_string(),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Slot names (`cpu`, `mem`, `cuda.device`) and their amounts, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotAmounts(Vec<(String, Amount)>);

impl SlotAmounts {
    /// Sets a slot's amount; a name given twice keeps its first place and its last amount.
    pub fn insert(&mut self, slot: String, amount: impl Into<Amount>) {
        let amount = amount.into();
        match self.0.iter_mut().find(|(name, _)| *name == slot) {
            Some(entry) => entry.1 = amount,
            None => self.0.push((slot, amount)),
        }
    }

    /// The amount of one slot.
    #[must_use]
    pub fn get(&self, slot: &str) -> Option<&Amount> {
        self.0
            .iter()
            .find(|(name, _)| name == slot)
            .map(|(_, amount)| amount)
    }

    /// Every slot in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Amount)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), amount))
    }

    /// Whether no slot is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The JSON object of `resource.txt`, with Python's default separators.
    #[must_use]
    pub fn to_json(&self) -> String {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let items: Vec<String> = self
            .0
            .iter()
            .map(|(name, amount)| format!("{}: {}", quote(name), quote(&amount.text)))
            .collect();
        format!("{{{}}}", items.join(", "))
    }
}

impl<A: Into<Amount>> FromIterator<(String, A)> for SlotAmounts {
    fn from_iter<T: IntoIterator<Item = (String, A)>>(items: T) -> Self {
        let mut slots = Self::default();
        for (slot, amount) in items {
            slots.insert(slot, amount);
        }
        slots
    }
}

/// Bytes in 19.03's short form: divided by the largest power of 1024 that is not above the value; whole numbers as
/// digits, others rounded half to even to two decimals with trailing zeros removed, whereby 1000.00 becomes `1E+3`.
///
/// ```
/// use backendai_agent::resource::slot::short_size;
/// assert_eq!(short_size(1536.into()), "1.5k");
/// assert_eq!(short_size(1_234_567_890.into()), "1.15g");
/// assert_eq!(short_size(1_048_576_001.into()), "1E+3m");
/// ```
#[must_use]
pub fn short_size(bytes: Decimal) -> String {
    let step = Decimal::from(1024);
    let (mut unit, mut suffix) = (Decimal::ONE, "");
    for next in ["k", "m", "g", "t", "p", "e", "z", "y"] {
        let larger = unit * step;
        if larger > bytes {
            break;
        }
        (unit, suffix) = (larger, next);
    }
    let quotient = bytes / unit;
    let number = if quotient.is_integer() {
        quotient.normalize().to_string()
    } else {
        python_normalized(quotient.round_dp_with_strategy(2, RoundingStrategy::MidpointNearestEven))
    };
    format!("{number}{suffix}")
}

/// A number as Python prints `Decimal.normalize()`: trailing zeros of whole numbers become an exponent.
fn python_normalized(value: Decimal) -> String {
    let value = value.normalize();
    let digits = value.to_string();
    let significant = digits.trim_end_matches('0');
    if !value.is_integer() || value.is_zero() || significant.len() == digits.len() {
        return digits;
    }
    let (first, rest) = significant.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    format!("{first}{point}{rest}E+{}", digits.len() - 1)
}

/// Reads a size: bare digits are bytes, a suffix letter multiplies by a power of 1024 and may be followed by `ib`,
/// `ibytes`, `b`, `byte` or `bytes`; `_` separates digits; case does not matter.
///
/// # Errors
/// When the text is not such a size; a fraction or an exponent needs a suffix, as in 19.03.
pub fn parse_size(text: &str) -> Result<Decimal, InvalidAmount> {
    let invalid = || InvalidAmount(text.to_owned());
    let plain: String = text.trim().to_ascii_lowercase().replace('_', "");
    if !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit()) {
        return plain.parse().map_err(|_| invalid());
    }
    let stem = ["ibytes", "bytes", "byte", "ib", "b"]
        .iter()
        .find_map(|ending| plain.strip_suffix(ending).map(str::trim_end))
        .unwrap_or(&plain);
    let letters = "kmgtpezy";
    let (number, power) = match stem.chars().last().and_then(|last| letters.find(last)) {
        Some(index) => (stem[..stem.len() - 1].trim_end(), index + 1),
        None if stem.len() < plain.len() => (stem, 0),
        None => return Err(invalid()),
    };
    let mut value = decimal(number)
        .filter(|value| !value.is_sign_negative())
        .ok_or_else(invalid)?;
    for _ in 0..power {
        value = value.checked_mul(Decimal::from(1024)).ok_or_else(invalid)?;
    }
    Ok(value.trunc())
}

/// A size as whole bytes.
///
/// # Errors
/// As [`parse_size`], and when it does not fit.
pub fn parse_bytes(text: &str) -> Result<u64, InvalidAmount> {
    parse_size(text)?
        .to_u64()
        .ok_or_else(|| InvalidAmount(text.to_owned()))
}

fn decimal(text: &str) -> Option<Decimal> {
    text.parse()
        .ok()
        .or_else(|| Decimal::from_scientific(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_cores_may_be_written_with_an_exponent() {
        let ten = Amount::parse("1E+1").expect("an amount");
        assert_eq!(ten.value(), Decimal::TEN);
        assert_eq!(ten.to_string(), "1E+1");
    }

    #[test]
    fn what_is_no_number_is_refused_by_its_text() {
        for bad in ["", "two", "-1", "NaN", "Infinity", "1E+99"] {
            assert_eq!(
                Amount::parse(bad),
                Err(InvalidAmount(bad.to_owned())),
                "{bad}"
            );
        }
    }

    #[test]
    fn short_sizes_are_those_of_the_original() {
        for (bytes, text) in [
            (0_i64, "0"),
            (1023, "1023"),
            (1024, "1k"),
            (1536, "1.5k"),
            (512 << 20, "512m"),
            (1 << 30, "1g"),
            (1_234_567_890, "1.15g"),
            (1_048_576_001, "1E+3m"),
        ] {
            assert_eq!(short_size(bytes.into()), text);
        }
        assert_eq!(python_normalized(Decimal::from(1020)), "1.02E+3");
    }

    #[test]
    fn sizes_are_read_in_every_form_the_original_takes() {
        for (text, bytes) in [
            ("1024", 1024_u64),
            ("1_000", 1000),
            ("1k", 1024),
            ("1.5K", 1536),
            ("2 MiB", 2 << 20),
            ("1gb", 1 << 30),
            ("3bytes", 3),
            ("1E+3m", 1000 << 20),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "1E+9", "1.5", "x", "-1k", "k"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slots_keep_the_order_in_which_they_were_given() {
        let slots: SlotAmounts = [("mem", "1234567890"), ("cpu", "1E+1")]
            .map(|(s, a)| (s.to_owned(), Amount::parse(a).expect("ok")))
            .into_iter()
            .collect();
        assert_eq!(slots.to_json(), r#"{"mem": "1234567890", "cpu": "1E+1"}"#);
    }
}
