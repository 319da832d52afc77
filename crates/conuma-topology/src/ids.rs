//! Typed ids. Host ids and guest ids are different types and never convert into each other
//! silently: the binding is the only place that knows both.

use std::fmt;

use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// What every numeric id can do; lets [`crate::IdSet`] work on all of them.
pub trait Id: Copy + Ord + fmt::Display {
    /// The id with this number.
    fn from_number(number: u32) -> Self;
    /// The number of this id.
    fn number(self) -> u32;
}

/// Reads a number that may be written as text, as keys of JSON maps are.
struct Number;

impl Visitor<'_> for Number {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the number of an id")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
        u32::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        u32::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
        text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl Id for $name {
            fn from_number(number: u32) -> Self {
                Self(number)
            }
            fn number(self) -> u32 {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Number).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// A logical CPU of the host, numbered as the host's Linux numbers it.
    CpuId;
    /// A NUMA node of the host, numbered as the host's Linux numbers it.
    NodeId;
    /// A physical package (socket) of the host.
    PackageId;
    /// A die, unique within the whole host (not within its package).
    DieId;
    /// A physical core, unique within the whole host; its CPUs are SMT siblings of each other.
    CoreId;
    /// A last-level cache, unique within the whole host.
    LlcId;
    /// A virtual CPU as QEMU counts it (`cpu-index`).
    VcpuId;
    /// A logical CPU as the guest's Linux numbers it.
    GuestCpuId;
    /// A NUMA node as the guest's Linux numbers it.
    GuestNodeId;
}
