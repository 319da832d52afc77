//! Amounts of memory.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// An amount of memory in bytes. Written by people with binary suffixes: `256M`, `4G`, `1.5T`.
/// In JSON always a plain number of bytes; read back from a number or from the written form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is not an amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an amount of memory: {reason} (expected the form `256M`, `4G` or `1.5T`)")]
pub struct ParseBytesError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

const UNITS: [(char, u64); 5] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10), ('B', 1)];

impl Bytes {
    /// No memory.
    pub const ZERO: Self = Self(0);

    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// What is left after taking `other` away, at least nothing.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The difference, or `None` if `other` is larger.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The largest multiple of `block` that is not above this; `block` must not be zero.
    pub const fn round_down(self, block: Self) -> Self {
        Self(self.0 / block.0 * block.0)
    }

    /// The smallest multiple of `block` that is not below this; `block` must not be zero.
    pub const fn round_up(self, block: Self) -> Self {
        Self(self.0.div_ceil(block.0) * block.0)
    }

    /// Written without any rounding, in the largest unit that divides it: `1536M`, `2096684K`.
    pub fn exact(self) -> String {
        let (suffix, unit) = UNITS.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)).unwrap_or(('B', 1));
        if self.is_zero() { "0".into() } else { format!("{}{suffix}", self.0 / unit) }
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::ZERO, Add::add)
    }
}

/// The largest unit that leaves a whole number or at most one digit after the point without loss
/// of meaning to a reader: `256M`, `1.5G`, `1023K`, `12B`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, unit) = UNITS.into_iter().find(|(_, unit)| self.0 >= *unit).unwrap_or(('B', 1));
        if self.0.is_multiple_of(unit) {
            f.pad(&format!("{}{suffix}", self.0 / unit))
        } else {
            f.pad(&format!("{:.1}{suffix}", self.0 as f64 / unit as f64))
        }
    }
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| ParseBytesError { text: text.into(), reason };
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_suffix("IB").unwrap_or(&upper);
        let (digits, unit) = UNITS
            .into_iter()
            .find_map(|(suffix, unit)| bare.strip_suffix(suffix).map(|digits| (digits, unit)))
            .unwrap_or((bare, 1));
        let digits = digits.trim();
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err(wrong("not a number with an optional unit"));
        }
        match digits.split_once('.') {
            None => {
                let whole: u64 = digits.parse().map_err(|_| wrong("too large"))?;
                whole.checked_mul(unit).map(Self).ok_or(wrong("too large"))
            }
            Some(_) => {
                let amount: f64 = digits.parse().map_err(|_| wrong("not a number"))?;
                let bytes = (amount * unit as f64).round();
                if bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(wrong("too large")) }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an amount of memory such as \"256M\" or a number of bytes")]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}
