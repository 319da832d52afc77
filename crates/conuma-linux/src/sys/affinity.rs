//! `sched_setaffinity(2)` and `sched_getaffinity(2)` without the C library's limit of 1024 CPUs.

use std::io;

use conuma_topology::{Id, IdSet};

use super::mask::{from_words, to_words};
use crate::procfs::Tid;

/// Lets a thread run only on these CPUs. The kernel cuts the set to the thread's cpuset and
/// remembers the whole set as the thread's own wish (since Linux 6.2 also while the cpuset is
/// smaller). Fails with `EINVAL` if nothing is left or the kernel has bound the thread, `ESRCH` if
/// it is gone, `EPERM` without `CAP_SYS_NICE`.
pub fn set_affinity<C: Id>(tid: Tid, cpus: &IdSet<C>) -> io::Result<()> {
    let words = to_words(cpus);
    let size = size_of_val(words.as_slice());
    // SAFETY: the kernel reads `size` bytes from a live buffer of that size and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid.0, size, words.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The CPUs a thread may run on now: its own wish cut to its cpuset.
pub fn affinity<C: Id>(tid: Tid) -> io::Result<IdSet<C>> {
    // 1024 CPUs first; the kernel says EINVAL while the buffer is smaller than its masks.
    let mut words = vec![0; 1024 / libc::c_ulong::BITS as usize];
    loop {
        let size = size_of_val(words.as_slice());
        // SAFETY: the kernel writes at most `size` bytes into a live buffer of that size and keeps
        // no pointer.
        let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.0, size, words.as_mut_ptr()) };
        if result >= 0 {
            return Ok(from_words(&words));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) || words.len() >= 1 << 16 {
            return Err(error);
        }
        words = vec![0; words.len() * 2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_topology::CpuSet;

    #[test]
    fn this_thread_shrinks_and_grows_back() {
        let own = Tid(0);
        let all: CpuSet = affinity(own).unwrap();
        let one: CpuSet = all.iter().take(1).collect();
        set_affinity(own, &one).unwrap();
        assert_eq!(affinity::<conuma_topology::CpuId>(own).unwrap(), one);
        set_affinity(own, &all).unwrap();
        assert_eq!(affinity::<conuma_topology::CpuId>(own).unwrap(), all);
    }

    #[test]
    fn no_cpu_at_all_is_refused() {
        let error = set_affinity(Tid(0), &CpuSet::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
