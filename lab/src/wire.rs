//! What goes over a virtio-serial port: one JSON value a line, many commands at once.

use serde::{Deserialize, Serialize};

/// What is asked of the responder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// Run a program with its arguments.
    Run {
        /// Names the command in all answers; unique among all clients of this responder.
        id: u64,
        /// Program and arguments.
        argv: Vec<String>,
        /// What it reads.
        stdin: String,
    },
    /// Kill the program of this command.
    Kill {
        /// The command.
        id: u64,
    },
}

/// What the responder says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Say {
    /// A part of standard output.
    Out {
        /// The command.
        id: u64,
        /// The part.
        text: String,
    },
    /// A part of standard error.
    Err {
        /// The command.
        id: u64,
        /// The part.
        text: String,
    },
    /// The program ended; nothing more comes of it.
    Exit {
        /// The command.
        id: u64,
        /// Its exit code; a signal counts as 128 and its number, as in shells.
        code: i32,
    },
}

impl Say {
    /// The command that it is about.
    pub fn id(&self) -> u64 {
        match self {
            Self::Out { id, .. } | Self::Err { id, .. } | Self::Exit { id, .. } => *id,
        }
    }
}
