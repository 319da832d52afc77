//! The host's end of the conversation with the agents in the guests.

mod conversation;
mod door;
mod link;
mod pushes;

pub use door::{Door, Doors};
pub use link::{AgentLink, AskError, Asked, LinkEvent, LinkState, LinkStatus};
