//! Everything Conuma knows about Linux: readers and writers of sysfs, procfs and cgroup v2 below a
//! root directory given by the caller, and the few raw system calls that no library wraps.

pub mod cgroup;
pub mod procfs;
pub mod sys;
pub mod sysfs;
mod text;

pub use text::read_text;
