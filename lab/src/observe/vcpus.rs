//! What the cgroup tree and `/proc` say of vCPU threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

/// One vCPU thread's leaf.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leaf {
    /// Thread id.
    pub(super) thread: u32,
    /// CPUs it may run on.
    pub(super) cpus: BTreeSet<u32>,
    /// Whether its gate is open: normal weight and no quota.
    pub(super) open: bool,
    /// Time it has run, nanoseconds.
    pub(super) run_ns: u64,
    /// When that was read.
    pub(super) read_at: Instant,
}

/// Reads all leaves `<cgroups>/<vm>/vcpu<k>` that hold a thread. A VM that disappears meanwhile is left out.
pub(super) fn read(root: &Path, cgroups: &Path) -> io::Result<BTreeMap<(String, u32), Leaf>> {
    let mut leaves = BTreeMap::new();
    if !cgroups.exists() {
        return Ok(leaves);
    }
    for vm in fs::read_dir(cgroups)?.flatten().filter(|entry| entry.path().is_dir()) {
        let Ok(children) = fs::read_dir(vm.path()) else { continue };
        for child in children.flatten() {
            let name = child.file_name().to_string_lossy().into_owned();
            let Some(vcpu) = name.strip_prefix("vcpu").and_then(|k| k.parse().ok()) else { continue };
            if let Some(leaf) = read_leaf(root, &child.path()) {
                leaves.insert((vm.file_name().to_string_lossy().into_owned(), vcpu), leaf);
            }
        }
    }
    Ok(leaves)
}

fn read_leaf(root: &Path, dir: &Path) -> Option<Leaf> {
    let text = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let thread: u32 = text("cgroup.threads")?.split_whitespace().next()?.parse().ok()?;
    let open = text("cpu.idle")?.trim() == "0" && text("cpu.max")?.starts_with("max");
    let schedstat = fs::read_to_string(root.join(format!("proc/{thread}/schedstat"))).ok()?;
    Some(Leaf {
        thread,
        cpus: parse_list(&text("cpuset.cpus")?),
        open,
        run_ns: schedstat.split_whitespace().next()?.parse().ok()?,
        read_at: Instant::now(),
    })
}

/// The host's cores as sets of SMT siblings.
pub(super) fn cores(root: &Path) -> Vec<BTreeSet<u32>> {
    let mut cores = BTreeSet::new();
    for cpu in fs::read_dir(root.join("sys/devices/system/cpu")).into_iter().flatten().flatten() {
        if let Ok(siblings) = fs::read_to_string(cpu.path().join("topology/thread_siblings_list")) {
            cores.insert(parse_list(&siblings));
        }
    }
    cores.into_iter().collect()
}

/// Reads the kernel's list form; what is no number is left out.
fn parse_list(text: &str) -> BTreeSet<u32> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_open_only_without_idle_class_and_quota() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/7/schedstat", "123456 99 3\n");
        write("cg/a/vcpu2/cgroup.threads", "7\n");
        write("cg/a/vcpu2/cpuset.cpus", "2\n");
        for (idle, max, open) in [("0", "max 100000", true), ("1", "max 100000", false), ("0", "5000 100000", false)] {
            write("cg/a/vcpu2/cpu.idle", idle);
            write("cg/a/vcpu2/cpu.max", max);
            let leaves = read(dir.path(), &dir.path().join("cg")).unwrap();
            let leaf = &leaves[&("a".to_owned(), 2)];
            assert_eq!((leaf.open, leaf.thread, leaf.run_ns), (open, 7, 123_456), "{idle} {max}");
            assert_eq!(leaf.cpus, BTreeSet::from([2]));
        }
    }
}
