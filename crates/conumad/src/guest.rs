//! Whether a guest runs, as its hypervisor last said.

use std::sync::{Mutex, MutexGuard, PoisonError};

use conuma_balancing::Fixed;
use conuma_hypervisor::RunState;

/// What is known of a guest.
#[derive(Debug, Default)]
pub struct GuestState {
    /// What was answered last; `None` before the first answer.
    last: Mutex<Option<RunState>>,
    /// Held from asking to keeping the answer: an older one must not come after a newer.
    asking: tokio::sync::Mutex<()>,
}

impl GuestState {
    /// The last word, if there was one.
    pub fn get(&self) -> Option<RunState> {
        *self.last()
    }

    /// Asks, and keeps what is answered. The answer, and whether it is news; that a guest runs is expected.
    pub(crate) async fn learn<E>(&self, ask: impl Future<Output = Result<RunState, E>>) -> Result<(RunState, bool), E> {
        let _one_at_a_time = self.asking.lock().await;
        let state = ask.await?;
        let before = self.last().replace(state).unwrap_or(RunState::Running);
        Ok((state, before != state))
    }

    fn last(&self) -> MutexGuard<'_, Option<RunState>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why memory of a guest in this state stays as it is: QEMU changes nothing in a migration, and after it no guest runs here that
/// could. For one that is merely paused there is no such reason: it may go on in time.
pub(crate) fn fixed(state: RunState) -> Option<Fixed> {
    match state {
        RunState::Migrating => Some(Fixed::Migrates),
        RunState::Migrated => Some(Fixed::Migrated),
        RunState::Running | RunState::Paused | RunState::Stopped | RunState::Ended => None,
    }
}
