//! The history of balancing decisions: what was known, what was planned, what came of it, and what it was worth.
//!
//! One SQLite file. A decision is appended before it is carried out ([`History::append`]) and finished when its outcome is
//! known ([`History::finish`]); one that has no outcome is under way. A daemon that comes back finds those of its
//! predecessor with [`History::under_way`]. Ids grow and are never used twice.
//!
//! - **It is for people and programs that look back.** Nothing is decided by it, so a file that cannot be used is moved
//!   aside and begun anew, and the caller is told ([`Opened::set_aside`]).
//! - **It outlives the daemon and the host.** The file has a write-ahead log, which is synced when it is copied into the
//!   file: a daemon that is killed loses nothing, a host that loses power loses the latest decisions at most, never the rest.
//! - **It is bounded** by number and age ([`Keep`]); each append removes what is beyond. The file does not shrink, its
//!   pages are used again.
//! - **An error leaves it usable.** A change is made as a whole or not at all; once a full disk has space again, the next
//!   one succeeds.
//!
//! Calls block on the disk, for up to [`PATIENCE`] if another process holds the file. An async caller gives them a
//! thread of their own.

mod error;
mod open;
mod query;
mod store;
mod types;

#[cfg(test)]
mod tests;

pub use error::{HistoryError, Kind, Refusal, Result};
pub use open::{Opened, PATIENCE, SetAside, Unusable};
pub use query::{MAX_ANSWER, MAX_LIMIT, Query, StateFilter};
pub use store::{Finished, History, Keep, MAX_DEPTH, MAX_VALUE};
pub use types::{Decision, DecisionId, NewDecision, Outcome, UnixMillis};
