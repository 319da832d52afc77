//! The host daemon.
//!
//! ```text
//! http ──────────► core (thread): engine, journal, bus ──actions──► actuator per VM: agent, memory and gate lanes
//! balance: decides    ▲                                                   │
//! vms: start, stop,   │                                                   │
//!      supervise ─────┴──────────────────── events ◄─────────────────────┘
//! ```
//!
//! Nothing here decides who holds what: that is `conuma-balancing`, and what would be good is said by `conuma-policy`. What must stay true here: the journal is
//! written before an action goes out ([`core`]); all writes to a running VM pass its [`actuator`]; resources of a VM
//! are free only when its process is dead ([`vms`]).

pub mod actuator;
pub mod agent;
mod balance;
pub mod bus;
pub mod clock;
pub mod config;
pub mod core;
pub mod daemon;
pub mod guest;
mod host_cpus;
pub mod http;
pub mod journal;
pub mod notify;
pub mod vms;
mod voice;
mod wire;

pub use config::{Config, Settings, Triggers};
pub use daemon::{Daemon, Surroundings};
