//! What the host daemon and the guest agent say to each other.
//!
//! **Frames.** A connection carries frames: a length as a big-endian `u32`, then so many bytes
//! ([`MAX_FRAME`] at most), one protobuf message each. The host sends [`Request`]s, the agent
//! answers every one with one [`Response`] that bears its id; answers may come in any order.
//!
//! **Pushes.** Only after a [`RequestBody::Watch`], and then for as long as the connection lasts, an agent also sends
//! reports that nobody asked for ([`Reply::Pushed`]), under an id that no request bears ([`RequestId::PUSHED`]).
//!
//! **Versions.** The first request on a connection is [`RequestBody::Hello`] with the range of
//! versions the host speaks; the agent picks the highest that both do ([`Versions::common`]).
//! Within a version fields are only added; a receiver ignores fields it does not know and answers
//! a request it does not know with [`AgentError::BadRequest`].
//!
//! **Trust.** Neither side trusts the other's bytes: [`decode_request`] and [`decode_response`]
//! never panic, allocate in proportion to the frame only, and turn wire messages into domain values
//! with every size checked. Numbers in a [`Report`] are a guest's own claim and nothing more.
//!
//! **Fencing.** A request that changes something carries the [`Generation`] of the decision behind
//! it. An agent refuses a generation older than the newest it has seen ([`AgentError::Stale`]);
//! repeating the newest is allowed and does the same again.
//!
//! The protocol speaks guest ids only; what host CPU or node stands behind one is the binding's
//! knowledge. Absent on purpose: I/O and clocks.
#![forbid(unsafe_code)]

mod codec;
mod pressure;
mod report;
mod request;
mod response;
mod wire;

use std::time::Duration;

pub use codec::{DecodeError, decode_request, decode_response, encode_request, encode_response, is_pushed, request_id};
pub use pressure::{Pushed, Resource, Trigger};
pub use report::{CpuReport, NodeReport, Pressure, PressureLine, Report};
pub use request::{Generation, Hello, Request, RequestBody, RequestId, Versions};
pub use response::{
    AgentError, AutoOnline, CgroupMode, GuestFacts, GuestNodeFacts, HoldingOutcome, Leftover, Leftovers, MemoryState,
    Prepared, Refusal, RefusalReason, Reply, Response, Stage, StageTime, TaskKind,
};

/// The vsock port the agent listens on.
pub const PORT: u32 = 5877;

/// Largest frame in bytes, its length prefix not counted. A report of 8192 CPUs fits.
pub const MAX_FRAME: usize = 512 * 1024;

/// Longest text (name, path, reason) in a message, in bytes; senders cut, receivers refuse.
pub const MAX_TEXT: usize = 512;

/// Most leftover tasks an agent names one by one; the rest is only counted.
pub const MAX_LEFTOVERS: usize = 32;

/// Most refusals in one answer.
pub const MAX_REFUSALS: usize = 256;

/// Most nodes in one message.
pub const MAX_NODES: usize = 1024;

/// Most CPUs listed one by one in a report.
pub const MAX_CPUS: usize = 8192;

/// Shortest window of a [`Trigger`]: kernels before 6.4 take none that is shorter.
pub const MIN_WINDOW: Duration = Duration::from_millis(500);

/// Longest window of a [`Trigger`]: no kernel takes a longer one.
pub const MAX_WINDOW: Duration = Duration::from_secs(10);

/// The versions this crate speaks.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };
