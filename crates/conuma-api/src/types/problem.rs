//! What went wrong.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not fulfilled: the body of every answer with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, ToSchema)]
#[error("{message}")]
pub struct Problem {
    /// The kind, for programs.
    pub code: Code,
    /// What was tried on what, and why it did not work.
    pub message: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The kind of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request cannot be understood (400).
    BadRequest,
    /// The VM file has errors (422).
    BadVmFile,
    /// The policy file has errors (422).
    BadPolicy,
    /// No such VM, transfer or path (404).
    NotFound,
    /// The VM exists already (409).
    Exists,
    /// A rule or the present state of things says no; nothing moved (409).
    Refused,
    /// Something did not come in time (504).
    TimedOut,
    /// QEMU or the host did not do what it should (502).
    Hypervisor,
    /// The daemon is ending (503).
    Stopping,
    /// A defect or a broken host (500).
    Internal,
    /// A kind that this client does not know.
    #[serde(other)]
    Unknown,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same, with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl Code {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Exists | Self::Refused => 409,
            Self::BadVmFile | Self::BadPolicy => 422,
            Self::Internal | Self::Unknown => 500,
            Self::Hypervisor => 502,
            Self::Stopping => 503,
            Self::TimedOut => 504,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::BadRequest => "bad-request",
            Self::BadVmFile => "bad-vm-file",
            Self::BadPolicy => "bad-policy",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Hypervisor => "hypervisor",
            Self::Stopping => "stopping",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        };
        f.pad(text)
    }
}
