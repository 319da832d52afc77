//! Which distribution this is, and where it keeps what the lab needs.

use anyhow::{Context, Result};

/// A distribution whose packages are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// "bookworm".
    Debian12,
    /// "trixie".
    Debian13,
    /// "noble".
    Ubuntu2404,
}

impl Distribution {
    /// This machine's, if it is known.
    pub(crate) fn read() -> Result<Option<Self>> {
        Ok(Self::parse(&std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?))
    }

    fn parse(os_release: &str) -> Option<Self> {
        let value = |key: &str| {
            let lines = os_release.lines().filter_map(|line| line.split_once('='));
            lines.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"'))
        };
        match (value("ID")?, value("VERSION_ID")?) {
            ("debian", "12") => Some(Self::Debian12),
            ("debian", "13") => Some(Self::Debian13),
            ("ubuntu", "24.04") => Some(Self::Ubuntu2404),
            _ => None,
        }
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "Debian 12",
            Self::Debian13 => "Debian 13",
            Self::Ubuntu2404 => "Ubuntu 24.04",
        }
    }

    /// Whether this set-up was ever run there.
    pub(crate) fn tested(self) -> bool {
        self == Self::Debian12
    }

    /// The release whose packages are recent enough; not one that every machine has among its sources.
    pub(crate) fn backports(self) -> Option<&'static str> {
        (self == Self::Debian12).then_some("bookworm-backports")
    }

    /// The release itself.
    pub(crate) fn release(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
            Self::Ubuntu2404 => "noble",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ones_are_known() {
        let check = |text: &str, expected| assert_eq!(Distribution::parse(text), expected, "{text}");
        check("NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n", Some(Distribution::Debian12));
        check("VERSION_ID=\"13\"\nID=debian\n", Some(Distribution::Debian13));
        check("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", Some(Distribution::Ubuntu2404));
        check("ID=debian\n", None);
        check("ID=fedora\nVERSION_ID=42\n", None);
    }
}
