//! From what the daemon knows to what goes over the wire, and back.

mod amounts;
pub(crate) mod decision;
mod guest;
mod moves;

pub(crate) use amounts::{demand, holder, ledger, loan, resources, violation};
pub(crate) use guest::{busy, guest_info, guest_report};
pub(crate) use moves::{engine_request, not_begun, notice_event, plan, refusal, transfer};

use std::time::Duration;

use conuma_api::GateState;
use conuma_hypervisor::gate::{Gate, Grip};

/// Microseconds, as far as a `u64` goes.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A count, as far as a `u32` goes.
pub(crate) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A gate on the wire.
pub(crate) fn gate_state(gate: Gate) -> GateState {
    match gate {
        Gate::Open => GateState::Open,
        Gate::Closed(grip) if grip == Grip::SOFT => GateState::Soft,
        Gate::Closed(_) => GateState::Firm,
    }
}
