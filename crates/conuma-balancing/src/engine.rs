//! The control core: events in, actions out, all state in one value.
//!
//! ```text
//! loop {
//!     engine.update(event, now);                          // something happened
//!     let actions = engine.next_actions(now);             // what to do about it
//!     journal.write(engine.state());                      // first on disk,
//!     for action in actions { actuators.send(action) }    // then done
//!     for notice in engine.take_notices() { tell(notice) }
//!     wait until an event comes or engine.next_deadline() passes
//! }
//! ```
//!
//! Commands are answered at once and change only the record; what they lead to comes out of
//! `next_actions`:
//!
//! ```text
//! Engine::new(Host, Timing) -> Engine                                        an empty host
//! Engine::recover(Option<State>, Host, Observation, Timing, now) -> Engine   after a restart
//! engine.start(VmSpec, now) -> Result<Resources, Refusal>       pool -> VM; then the daemon starts QEMU with
//!                                                               these gates open and sends VmStarted (or VmGone)
//! engine.request(Request, now) -> Result<TransferId, Refusal>
//! engine.preview(&Request) -> Result<TransferPlan, Refusal>
//! engine.preview_start(&VmSpec) -> Result<Resources, Refusal>
//! engine.ledger() -> &Ledger, engine.loans() -> &[Loan], engine.host() -> &Host
//! engine.vm(&VmName) -> Option<VmView>, engine.vms() -> Vec<VmView>
//! engine.report(TransferId) -> Option<&Report>, engine.reports() -> impl Iterator<&Report>
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::ledger::Ledger;
use crate::report::Notice;
use crate::timing::Timing;
use crate::vm::Loan;

/// The control core. Deterministic: the same calls with the same times give the same actions.
#[derive(Debug, Clone)]
pub struct Engine {
    state: State,
    timing: Timing,
    notices: Vec<Notice>,
}

/// All that the engine knows; what the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(crate) host: Host,
    pub(crate) ledger: Ledger,
    pub(crate) loans: Vec<Loan>,
}

impl Engine {
    /// An engine for a host without VMs.
    pub fn new(host: Host, timing: Timing) -> Self {
        let ledger = Ledger::new(&host);
        Self { state: State { host, ledger, loans: Vec::new() }, timing, notices: Vec::new() }
    }

    /// What the journal keeps.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What happened since the last call, for people and programs that watch.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// When to call `next_actions` again if nothing happens before, in engine time.
    pub fn next_deadline(&self) -> Option<Duration> {
        let _ = &self.timing;
        None
    }
}
