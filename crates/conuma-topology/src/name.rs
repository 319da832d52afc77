//! Names of virtual machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Longest name in bytes: a name becomes a directory, a cgroup and a QEMU process name.
const MAX_LENGTH: usize = 48;

/// The name of a VM: 1 to 48 ASCII letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
/// Safe as one component of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VmName(String);

/// Why a text is not the name of a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot name a VM (expected 1 to {MAX_LENGTH} letters, digits, `-`, `_` or `.`, a letter or digit first)"
)]
pub struct ParseVmNameError(pub String);

impl VmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = ParseVmNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins_well && text.len() <= MAX_LENGTH && text.chars().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(ParseVmNameError(text.chars().take(MAX_LENGTH + 1).collect()))
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for VmName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for VmName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_path_components() {
        for good in ["a", "db-1", "9front", "a.b_c"] {
            assert_eq!(good.parse::<VmName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", &"x".repeat(49)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }
}
