//! Whether a guest runs, as its hypervisor last said.

use std::sync::{Mutex, PoisonError};

use conuma_hypervisor::RunState;

/// What is known of a guest. One that nobody has asked about runs.
#[derive(Debug)]
pub struct GuestState(Mutex<RunState>);

impl Default for GuestState {
    fn default() -> Self {
        Self(Mutex::new(RunState::Running))
    }
}

impl GuestState {
    /// The last word.
    pub fn get(&self) -> RunState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the hypervisor said; whether that is news.
    pub(crate) fn set(&self, state: RunState) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *last, state) != state
    }

    /// Why no memory comes and goes, whatever the guest's kernel would do; nothing if it may.
    pub(crate) fn keeps_memory(&self) -> Option<&'static str> {
        match self.get() {
            RunState::Migrating => Some("it is being migrated live, and its memory stays as it is until that ends"),
            RunState::Migrated => Some("its guest was migrated away and runs here no more"),
            RunState::Running | RunState::Paused | RunState::Stopped | RunState::Ended => None,
        }
    }
}
