//! Memory that the kernel cannot evict, or not even move: what a guest may do to memory that is wanted back.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_long, c_uint, c_void};

/// From `linux/io_uring.h`: register memory for requests of a ring, which pins it for as long as the ring lives.
const IORING_REGISTER_BUFFERS: c_uint = 0;

/// `struct io_uring_params` is 120 bytes; all of them zero ask for nothing but a ring.
type RingParams = [u32; 30];

/// Memory that stays where it is until this is dropped.
#[derive(Debug)]
pub struct Kept {
    // Closed first, which ends the pin.
    _ring: Option<OwnedFd>,
    memory: Vec<u8>,
}

impl Kept {
    /// Locks it by `mlock(2)`: present as long as this lives, though the kernel may move it to other pages.
    pub fn locked(mut memory: Vec<u8>) -> io::Result<Self> {
        // SAFETY: the range is that of a live buffer, of which nothing is read or written.
        let result = unsafe { libc::mlock(memory.as_mut_ptr().cast::<c_void>(), memory.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { _ring: None, memory })
    }

    /// Registers it with an io_uring, a pin of the kernel's long-term kind: it is not even moved.
    pub fn pinned(mut memory: Vec<u8>) -> io::Result<Self> {
        let mut params: RingParams = [0; 30];
        // SAFETY: the kernel reads and writes one `io_uring_params`, which the live array has room for.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1 as c_uint, ptr::from_mut(&mut params)) };
        let ring = checked(ring)?;
        // SAFETY: a descriptor that the kernel has just made, and nobody else has.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        let buffer = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        let (operation, count) = (IORING_REGISTER_BUFFERS, 1 as c_uint);
        // SAFETY: the kernel reads one live entry, and writes to the memory it names only for requests: none is ever made.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), operation, ptr::from_ref(&buffer), count)
        };
        checked(result)?;
        Ok(Self { _ring: Some(ring), memory })
    }
}

impl Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory
    }
}

fn checked(result: c_long) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_what_was_locked_and_is_counted() {
        let kept = Kept::locked(vec![7; 4096]).unwrap();
        assert!(kept.iter().all(|byte| *byte == 7));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
        assert_ne!(locked, "0 kB");
    }

    #[test]
    fn pinned_memory_is_what_was_pinned() {
        match Kept::pinned(vec![7; 4096]) {
            Ok(kept) => assert!(kept.iter().all(|byte| *byte == 7)),
            // Kernels can be told to have no rings.
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)), "{error}"),
        }
    }
}
