//! `migrate_pages(2)` and `move_pages(2)`.

use std::io;
use std::ptr;

use conuma_topology::{Id, IdSet, NodeId};
use libc::{c_int, c_ulong, c_void};

use super::mask::to_words;
use crate::procfs::Pid;

/// From `linux/mempolicy.h`: move the pages that only this process uses.
const MPOL_MF_MOVE: c_int = 1 << 1;

/// Moves all pages of a process that are on nodes `from` to nodes `to`, as far as they can be
/// moved; tells how many could not. Pages shared with other processes are moved too, with
/// `CAP_SYS_NICE`.
pub fn migrate_pages<N: Id>(pid: Pid, from: &IdSet<N>, to: &IdSet<N>) -> io::Result<u64> {
    let (mut from, mut to) = (to_words(from), to_words(to));
    let words = from.len().max(to.len());
    from.resize(words, 0);
    to.resize(words, 0);
    // The kernel takes the number of bits plus one, a habit of its get_nodes().
    let bits = words as c_ulong * c_ulong::from(c_ulong::BITS) + 1;
    // SAFETY: the kernel reads `bits - 1` bits, which both live buffers have, and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_migrate_pages, pid.0, bits, from.as_ptr(), to.as_ptr()) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Where a page is after [`move_pages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagePlace<N> {
    /// On this node.
    On(N),
    /// Nowhere or not moved: the kernel's error number (`ENOENT` for a page that is not in memory,
    /// `EBUSY` for one that is in use).
    Not(i32),
}

/// Moves the pages at these addresses of a process to these nodes, address by address; with
/// `nodes` of `None` only asks where they are. One answer per address.
pub fn move_pages<N: Id>(pid: Pid, addresses: &[u64], nodes: Option<&[N]>) -> io::Result<Vec<PagePlace<N>>> {
    if nodes.is_some_and(|nodes| nodes.len() != addresses.len()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "one node per address is needed"));
    }
    let pages: Vec<*mut c_void> =
        addresses.iter().map(|&address| ptr::without_provenance_mut(address as usize)).collect();
    let nodes: Option<Vec<c_int>> = nodes
        .map(|nodes| nodes.iter().map(|node| c_int::try_from(node.number())).collect::<Result<_, _>>())
        .transpose()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "node number too large"))?;
    // A page the kernel does not reach keeps this.
    let mut status: Vec<c_int> = vec![-libc::EAGAIN; addresses.len()];
    let nodes_at = nodes.as_ref().map_or(ptr::null(), Vec::as_ptr);
    // SAFETY: all three live buffers have one entry per page (`nodes` may be null); the addresses
    // belong to the other process and are not followed here; the kernel keeps no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid.0,
            pages.len() as c_ulong,
            pages.as_ptr(),
            nodes_at,
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status
        .into_iter()
        .map(|status| u32::try_from(status).map_or(PagePlace::Not(-status), |node| PagePlace::On(N::from_number(node))))
        .collect())
}

/// Whether a process has memory of its own: kernel threads have none, nor have processes that are ending. One system
/// call, where reading its `stat` is three, with a walk through procfs. Needs the rights that [`move_pages`] needs.
pub fn has_memory(pid: Pid) -> io::Result<bool> {
    match move_pages::<NodeId>(pid, &[], None) {
        Ok(_) => Ok(true),
        // What the kernel says where there is no memory; nothing else about an empty list is invalid.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_topology::NodeSet;

    #[test]
    fn a_touched_page_is_on_a_node() {
        let page = vec![1u8; 3 * 4096];
        let address = (page.as_ptr() as u64 + 4096) & !4095;
        let own = Pid(std::process::id());
        let places = move_pages::<NodeId>(own, &[address, 4096], None).unwrap();
        let PagePlace::On(node) = places[0] else { unreachable!("the page was just written: {places:?}") };
        assert!(matches!(places[1], PagePlace::Not(_)));
        let moved = move_pages(own, &[address], Some(&[node])).unwrap();
        assert_eq!(moved, [PagePlace::On(node)]);
        assert_eq!(migrate_pages(own, &NodeSet::from([node]), &NodeSet::from([node])).unwrap(), 0);
    }

    #[test]
    fn a_process_has_memory_until_it_has_ended() {
        assert!(has_memory(Pid(std::process::id())).unwrap());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid(child.id());
        let mut stat = String::new();
        while !stat.contains(") Z ") {
            stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        }
        assert!(!has_memory(pid).unwrap(), "a zombie");
        child.wait().unwrap();
        assert_eq!(has_memory(pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn unequal_lists_are_refused() {
        let error = move_pages(Pid(1), &[0, 1], Some(&[NodeId(0)])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
