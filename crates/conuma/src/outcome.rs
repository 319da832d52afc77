//! What a command that did not fail came to.

use conuma_api::TransferState;

/// The outcome of a command, as its exit code tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is done.
    Done,
    /// A part of it is done.
    Partly,
    /// A guest or a rule said no; nothing was done.
    Refused,
    /// What was to be checked is not valid.
    Invalid,
}

impl Outcome {
    /// The exit code of an error.
    pub const FAILED: u8 = 1;

    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Partly => 3,
            Self::Refused => 4,
            Self::Invalid => Self::FAILED,
        }
    }

    /// What a transfer came to; `None` if it is not over or cannot be told.
    pub fn of_transfer(state: TransferState) -> Option<Self> {
        match state {
            TransferState::Complete => Some(Self::Done),
            TransferState::Partial => Some(Self::Partly),
            TransferState::Nothing | TransferState::Refused => Some(Self::Refused),
            TransferState::Waiting | TransferState::Moving | TransferState::Unknown => None,
        }
    }
}
