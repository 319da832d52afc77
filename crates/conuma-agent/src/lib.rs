//! The guest agent: applies the host's decisions inside one guest, and reports.
//!
//! Problem. The host lends cores and memory between guests. A guest must leave a CPU that it does
//! not hold idle at once (the host closes the gate anyway, but a guest that cooperates loses
//! nothing), and must make room on a node before memory is unplugged from it.
//!
//! Method. A holding is applied with plain member cpusets: `cpuset.cpus` of every top-level
//! cgroup. That moves every user task in one write per cgroup, keeps every task's own affinity
//! wish, and costs neither hotplug nor a scheduler-domain rebuild. Tasks in the root cgroup, which
//! has no such file, are swept into a cgroup of the agent's. Interrupts, movable kernel threads
//! and unbound kernel work follow by their own masks.
//!
//! What somebody else had set is a *wish*: it is remembered, cut to the holding, and restored when
//! the CPUs return. If a value is not what the agent wrote, somebody else wrote it, and that is
//! the new wish ([`wish::Touched`]).
//!
//! Failing safe. The agent keeps what it must remember in a small file that lives as long as the
//! boot. If it stops, the last holding stays; when it starts again it applies it again.
//!
//! Parts: [`wish`] and [`state`] are pure; [`cgroups`], [`tasks`], [`interrupts`] and [`memory`]
//! each know one kernel interface below a root directory; [`holding`] puts the first three
//! together; [`facts`] and [`report`] only read; [`triggers`] wait for pressure; [`serve`], [`listen`] and [`watch`] are
//! the edges.

pub mod args;
pub mod cgroups;
pub mod facts;
pub mod holding;
pub mod interrupts;
pub mod kernel;
pub mod listen;
pub mod log;
pub mod memory;
pub mod report;
pub mod serve;
pub mod state;
pub mod tasks;
pub mod triggers;
pub mod watch;
pub mod wish;
mod zones;
