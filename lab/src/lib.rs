//! A virtual NUMA host with real KVM guests, on any machine.
//!
//! The outer machine runs QEMU without KVM and emulates a host with the wanted topology *and* AMD's virtualisation
//! extension, so that `/dev/kvm` appears in it. That virtual host runs the real daemon, which starts real guests.
//!
//! ```text
//! this machine                     virtual host                          guests
//! ------------                     ------------                          ------
//! conuma-lab  -- virtio-serial --> conuma-lab-init   -- virtio-serial --> conuma-lab-init
//!                                  conumad, conuma   -- vsock, QMP -----> conuma-agent
//! ```
//!
//! What runs in the host and in the guests is built into their initial RAM file systems by [`image`]; nothing of this machine's file
//! system is visible to them.

pub mod bench;
pub mod chaos;
pub mod demo;
pub mod image;
pub mod observe;
pub mod trials;
pub mod wire;

mod client;
mod confine;
mod hands;
mod host;
mod keep;
mod keeper;
mod killer;
mod liar;
mod monitor;
mod responder;
mod shell;
mod spec;
mod stage;

pub use client::{Client, Output};
pub use confine::confine;
pub use host::{Kit, Lab, Look, Running, wait_until};
pub use keep::{Hold, keep};
pub use killer::{Kill, kill_at};
pub use liar::{Lie, lie};
pub use monitor::Monitor;
pub use responder::serve;
pub use shell::{print, shell};
pub use spec::LabSpec;
pub use stage::{GuestSpec, Stage, Witness};
