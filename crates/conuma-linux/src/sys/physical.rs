//! Physical addresses that nobody has claimed: where a guest's memory would be that is not plugged.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

const PAGE: usize = 4096;

/// Writes to each page of so many bytes at a physical address, through `/dev/mem`, and reads it back: how many pages kept what was
/// written, as memory does. Refused where `/proc/iomem` knows of memory or a device, so that it harms nobody but the hypervisor,
/// and where that does not tell any addresses, as without `CAP_SYS_ADMIN`.
pub fn touch_unclaimed(address: u64, bytes: usize) -> io::Result<usize> {
    let range = address..address.saturating_add(bytes as u64);
    if let Some(claimed) = claimed(&fs::read_to_string("/proc/iomem")?, &range) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("these addresses are of: {claimed}")));
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
    let offset = libc::off_t::try_from(address).map_err(io::Error::other)?;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let mapped = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut kept = 0;
    for at in (0..bytes).step_by(PAGE) {
        // Differs from page to page, and is neither of the two that a bus answers with where nothing is.
        let pattern = (at / PAGE % 253) as u8 + 1;
        // SAFETY: within the mapping, which nobody else has; what lies behind it is no memory of this kernel, as was asked above.
        // Volatile, as it may not be memory at all.
        let read = unsafe {
            let page = mapped.cast::<u8>().add(at);
            page.write_volatile(pattern);
            page.read_volatile()
        };
        kept += usize::from(read == pattern);
    }
    // SAFETY: the mapping made above, to which no pointer is left.
    unsafe { libc::munmap(mapped, bytes) };
    Ok(kept)
}

/// The line of `/proc/iomem` whose addresses overlap these, or do not tell where they are.
fn claimed<'a>(iomem: &'a str, range: &Range<u64>) -> Option<&'a str> {
    iomem.lines().find(|line| {
        let addresses = line.split_once(" : ").and_then(|(addresses, _)| addresses.trim().split_once('-'));
        let number = |text| u64::from_str_radix(text, 16).ok();
        // What cannot be read is taken for claimed.
        let Some((first, last)) = addresses.and_then(|(first, last)| number(first).zip(number(last))) else {
            return true;
        };
        last == 0 || first < range.end && range.start <= last
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_memory_and_devices_are_claimed() {
        let iomem =
            "00001000-0009ffff : System RAM\n100000000-13fffffff : System RAM\n  101000000-101ffffff : Kernel code\n";
        assert_eq!(claimed(iomem, &(0x1_4000_0000..0x1_5000_0000)), None);
        assert_eq!(claimed(iomem, &(0xa0000..0x10_0000)), None);
        assert!(claimed(iomem, &(0x9f000..0xa0000)).is_some_and(|line| line.starts_with("00001000")));
        assert!(claimed(iomem, &(0x1_3fff_f000..0x1_5000_0000)).is_some());
        assert!(claimed("nonsense\n", &(0..1)).is_some());
        assert!(claimed("00000000-00000000 : System RAM\n", &(0x1_4000_0000..0x1_5000_0000)).is_some());
    }
}
