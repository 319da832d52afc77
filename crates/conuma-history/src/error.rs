//! What may go wrong.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::open::Unusable;
use crate::store::{MAX_DEPTH, MAX_VALUE};

/// What a call to the history gives.
pub type Result<T> = std::result::Result<T, HistoryError>;

/// A call to the history failed, and changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file is not there and cannot be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file cannot be used, and it cannot be moved out of the way either.
    #[error("cannot move the unusable {} to {} ({why})", path.display(), to.display())]
    SetAside {
        /// The file, or one that belongs to it.
        path: PathBuf,
        /// Where it should go.
        to: PathBuf,
        /// Why it cannot be used.
        why: Unusable,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file that was just begun does not read as it was written.
    #[error("cannot use {}, which was just begun: {why}", path.display())]
    Begun {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Unusable,
    },
    /// SQLite could not do it.
    #[error("cannot {tried} {}{}", path.display(), hint(source))]
    Store {
        /// The file.
        path: PathBuf,
        /// What was tried, as "append a decision to".
        tried: String,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The value cannot be kept.
    #[error("cannot {tried} {}: `{field}` {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was tried, as "append a decision to".
        tried: String,
        /// The field of the decision or the outcome.
        field: &'static str,
        /// What is wrong with it.
        why: Refusal,
    },
}

/// Why a value is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is longer than [`MAX_VALUE`].
    #[error("has {bytes} bytes, and at most {MAX_VALUE} are kept")]
    TooLong {
        /// Its length as text.
        bytes: usize,
    },
    /// It has more than [`MAX_DEPTH`] levels, and could not be read again.
    #[error("has lists or objects within each other more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// It is infinite or not a number.
    #[error("is not a finite number")]
    NotFinite,
}

/// What kind of failure it is, for a caller that does something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The disk is full.
    Full,
    /// The disk or the file may not be written.
    ReadOnly,
    /// Another process holds the file.
    Busy,
    /// What is in the file is damaged.
    Damaged,
    /// The value cannot be kept.
    Refused,
    /// Something else, as an I/O error.
    Other,
}

impl HistoryError {
    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Create { source, .. } | Self::SetAside { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Full,
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Kind::ReadOnly,
                _ => Kind::Other,
            },
            Self::Begun { .. } => Kind::Damaged,
            Self::Store { source, .. } => kind(source),
            Self::Refused { .. } => Kind::Refused,
        }
    }
}

/// What kind of failure SQLite tells of.
pub(crate) fn kind(error: &rusqlite::Error) -> Kind {
    // There was no space for the log's index, which only an I/O error tells.
    if error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
        return Kind::Full;
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Kind::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Kind::ReadOnly,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::Busy,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Damaged,
        Some(_) => Kind::Other,
        None => match error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => Kind::Damaged,
            _ => Kind::Other,
        },
    }
}

fn hint(error: &rusqlite::Error) -> &'static str {
    match kind(error) {
        // A row that somebody else has changed; the file is sound.
        Kind::Damaged if error.sqlite_error_code().is_none() => "",
        Kind::Full => " (free some space on its disk; nothing else needs to be done)",
        Kind::ReadOnly => " (its disk, directory or file may not be written)",
        Kind::Busy => " (another process holds it)",
        Kind::Damaged => " (it is moved aside when it is opened next)",
        Kind::Refused | Kind::Other => "",
    }
}
