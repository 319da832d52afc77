//! Where memory is: `numa_maps`, a node's `meminfo`, `vmstat`.

use std::collections::BTreeMap;

use conuma_topology::Bytes;

use super::{Pid, ProcError, ProcFs};

/// One mapping of a process, from `/proc/PID/numa_maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaMapping {
    /// Where it begins.
    pub start: u64,
    /// Its memory policy as the kernel writes it (`default`, `bind:1`, `prefer:0`).
    pub policy: String,
    /// The mapped file, if any.
    pub file: Option<String>,
    /// Whether its pages come from a huge page pool.
    pub huge: bool,
    /// Size of the pages that are counted.
    pub page_size: Bytes,
    /// Pages by node. A mapping with no page in memory has none.
    pub pages: BTreeMap<u32, u64>,
}

impl NumaMapping {
    /// Memory on a node.
    pub fn on_node(&self, node: u32) -> Bytes {
        let pages = self.pages.get(&node).copied().unwrap_or(0);
        Bytes(pages.saturating_mul(self.page_size.0))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut mapping = Self {
            start: u64::from_str_radix(words.next()?, 16).ok()?,
            policy: words.next()?.to_owned(),
            file: None,
            huge: false,
            page_size: Bytes::kib(4),
            pages: BTreeMap::new(),
        };
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                mapping.huge |= word == "huge";
                continue;
            };
            if key == "file" {
                mapping.file = Some(value.to_owned());
            } else if key == "kernelpagesize_kB" {
                mapping.page_size = Bytes::kib(value.parse().ok()?);
            } else if let Some(node) = key.strip_prefix('N').and_then(|node| node.parse().ok()) {
                mapping.pages.insert(node, value.parse().ok()?);
            }
        }
        Some(mapping)
    }
}

/// Reads the text of `numa_maps`; `None` if a line is none of a mapping.
pub fn parse_numa_maps(text: &str) -> Option<Vec<NumaMapping>> {
    text.lines().filter(|line| !line.trim().is_empty()).map(NumaMapping::parse).collect()
}

/// A `meminfo` file, of a node or of the machine, by key (`MemTotal`, `HugePages_Free`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meminfo {
    values: BTreeMap<String, u64>,
}

impl Meminfo {
    /// An amount; nothing if the kernel does not tell it.
    pub fn bytes(&self, key: &str) -> Bytes {
        Bytes::kib(self.count(key))
    }

    /// What of a node could be had without swapping: what is free, page cache that is no shared memory, reclaimable kernel objects.
    /// A node's file has no `MemAvailable`.
    pub fn available_on_node(&self) -> Bytes {
        let cache = self.bytes("FilePages").saturating_sub(self.bytes("Shmem"));
        self.bytes("MemFree") + cache + self.bytes("SReclaimable")
    }

    /// A plain number (`HugePages_*`); zero if the kernel does not tell it.
    pub fn count(&self, key: &str) -> u64 {
        self.values.get(key).copied().unwrap_or(0)
    }

    /// Reads `MemFree: 12 kB` and `Node 0 MemFree: 12 kB` alike.
    pub fn parse(text: &str) -> Option<Self> {
        let mut values = BTreeMap::new();
        for line in text.lines() {
            let (head, tail) = line.split_once(':')?;
            let key = head.split_ascii_whitespace().next_back()?;
            values.insert(key.to_owned(), tail.split_ascii_whitespace().next()?.parse().ok()?);
        }
        (!values.is_empty()).then_some(Self { values })
    }
}

/// Adds up what a node's `vmstat` has of pages that came back: one counter before Linux 5.9, then one for anonymous pages
/// and one for the page cache.
fn parse_refaults(text: &str) -> Option<Option<u64>> {
    const COUNTERS: [&str; 3] = ["workingset_refault_anon", "workingset_refault_file", "workingset_refault"];
    let mut sum: Option<u64> = None;
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(' ')
            && COUNTERS.contains(&name)
        {
            sum = Some(sum.unwrap_or(0).saturating_add(value.trim().parse().ok()?));
        }
    }
    Some(sum)
}

impl ProcFs {
    /// A process's mappings with their pages by node.
    pub fn numa_maps(&self, pid: Pid) -> Result<Vec<NumaMapping>, ProcError> {
        self.parsed(format!("proc/{pid}/numa_maps"), "lines of mappings", parse_numa_maps)
    }

    /// A process's resident memory in pages of the kernel's base size; zero for a kernel thread.
    pub fn resident_pages(&self, pid: Pid) -> Result<u64, ProcError> {
        self.parsed(format!("proc/{pid}/statm"), "resident pages", |text| {
            text.split_ascii_whitespace().nth(1)?.parse().ok()
        })
    }

    /// A node's memory (`/sys/devices/system/node/nodeN/meminfo`).
    pub fn node_meminfo(&self, node: u32) -> Result<Meminfo, ProcError> {
        self.parsed(format!("sys/devices/system/node/node{node}/meminfo"), "lines of amounts", Meminfo::parse)
    }

    /// Pages, of the kernel's base size, that a node had to take in again soon after it had let them go, since boot
    /// (`/sys/devices/system/node/nodeN/vmstat`); `None` if the kernel does not count them. The kernel adds up counters of
    /// every CPU for it.
    pub fn node_refaults(&self, node: u32) -> Result<Option<u64>, ProcError> {
        let path = format!("sys/devices/system/node/node{node}/vmstat");
        self.parsed(path, "lines of a name and a number", parse_refaults)
    }

    /// The machine's memory.
    pub fn meminfo(&self) -> Result<Meminfo, ProcError> {
        self.parsed("proc/meminfo", "lines of amounts", Meminfo::parse)
    }

    /// The kernel's event counters (`pgmigrate_success` and so on).
    pub fn vmstat(&self) -> Result<BTreeMap<String, u64>, ProcError> {
        self.parsed("proc/vmstat", "lines of a name and a number", |text| {
            text.lines()
                .map(|line| {
                    let (name, value) = line.split_once(' ')?;
                    Some((name.to_owned(), value.trim().parse().ok()?))
                })
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_every_kind() {
        let text = "\
7f0000000000 bind:1 anon=1024 dirty=1024 N1=1024 kernelpagesize_kB=4
7f4000000000 bind:0 file=/anon_hugepage\\040(deleted) huge dirty=3 N0=3 kernelpagesize_kB=2048
55d000000000 default file=/usr/bin/qemu mapped=20 N0=15 N1=5 kernelpagesize_kB=4
7ffe00000000 default stack
";
        let maps = parse_numa_maps(text).unwrap();
        assert_eq!(maps[0].policy, "bind:1");
        assert_eq!(maps[0].on_node(1), Bytes::mib(4));
        assert_eq!(maps[0].on_node(0), Bytes::ZERO);
        assert!(maps[1].huge);
        assert_eq!(maps[1].on_node(0), Bytes::mib(6));
        assert_eq!(maps[2].file.as_deref(), Some("/usr/bin/qemu"));
        assert!(maps[3].pages.is_empty());
        assert_eq!(parse_numa_maps("garbage\n"), None);
        assert_eq!(parse_numa_maps(""), Some(vec![]));
    }

    #[test]
    fn meminfo_of_node_and_machine() {
        let node = Meminfo::parse("Node 1 MemTotal:  1024 kB\nNode 1 HugePages_Free:     3\n").unwrap();
        assert_eq!(node.bytes("MemTotal"), Bytes::mib(1));
        assert_eq!(node.count("HugePages_Free"), 3);
        assert_eq!(node.bytes("NoSuch"), Bytes::ZERO);
        assert_eq!(Meminfo::parse("MemFree: 8 kB\n").unwrap().bytes("MemFree"), Bytes::kib(8));
        assert_eq!(Meminfo::parse("garbage"), None);
    }

    #[test]
    fn refaults_of_older_and_newer_kernels() {
        let newer =
            "nr_free_pages 7\nworkingset_refault_anon 30\nworkingset_refault_file 12\nworkingset_activate_file 9\n";
        assert_eq!(parse_refaults(newer), Some(Some(42)));
        assert_eq!(parse_refaults("workingset_nodes 1\nworkingset_refault 5\n"), Some(Some(5)));
        assert_eq!(parse_refaults("nr_free_pages 7\n"), Some(None), "not counted");
        assert_eq!(parse_refaults("workingset_refault_file x\n"), None);
    }

    #[test]
    fn this_machine_reads() {
        let proc = ProcFs::new("/");
        assert!(proc.meminfo().unwrap().bytes("MemTotal") > Bytes::mib(1));
        assert!(!proc.vmstat().unwrap().is_empty());
    }
}
