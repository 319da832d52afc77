//! How one move runs: take, verify, give. A step looks at what is known by now and goes on as far
//! as that allows; it never waits and never asks twice for what is already asked.

pub(crate) mod cores;
pub(crate) mod memory;
