//! What the daemon and its clients say to each other: HTTP with JSON over a Unix socket.
//!
//! The types here are the wire's own. They borrow ids, sets and amounts from `conuma-topology`,
//! which have one written form everywhere (`"0-3,8"`, a number of bytes), and nothing else from the
//! daemon's inside, so that the inside may change without the wire. Within a version fields are only
//! added; readers ignore what they do not know.
//!
//! Sums are written externally tagged (`{"lend": {…}}`): a client needs to look at one key only.

mod client;
mod path;
mod sse;
mod types;

pub use client::{Client, ClientError, EventStream, VIEWERS};
pub use path::{Paths, VERSION_PREFIX};
pub use sse::{Frame, FrameReader};
pub use types::*;
