//! What of a node's free memory tasks can have: the kernel's zones, with what it keeps of each.

use std::collections::BTreeMap;

use super::{ProcError, ProcFs};

/// A zone of a node, from `/proc/zoneinfo`. Amounts are in pages of the kernel's base size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Zone {
    /// Its node.
    pub node: u32,
    /// `DMA32`, `Normal`, `Movable` and so on.
    pub name: String,
    /// Free pages.
    pub free: u64,
    /// Pages that the page allocator manages.
    pub managed: u64,
    /// With so many free it is content: its high watermark, without what the kernel adds for a while against fragmentation.
    pub high: u64,
    /// So many it keeps, besides, from those who could be served by a higher zone (`vm.lowmem_reserve_ratio`).
    pub protection: u64,
}

impl Zone {
    /// Of so many free pages, those that no task of a user gets: its kernel goes to another node before, or reclaims. It counts the same
    /// off its `MemAvailable`.
    pub fn kept_of(&self, free: u64) -> u64 {
        self.high.saturating_add(self.protection).min(free)
    }
}

/// Free pages of every populated zone, by node and name.
pub type FreePages = BTreeMap<(u32, String), u64>;

/// What it does not understand of a zone's marks counts as nothing.
fn parse_zones(text: &str) -> Option<Vec<Zone>> {
    let mut zones: Vec<Zone> = Vec::new();
    // Told before the watermarks that contain it; kernels that have none do not tell it.
    let mut boost = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match *words.as_slice() {
            ["Node", node, "zone", name] => {
                boost = 0;
                let node = node.trim_end_matches(',').parse().ok()?;
                zones.push(Zone { node, name: name.to_owned(), ..Zone::default() });
            }
            ["pages", "free", pages] => zones.last_mut()?.free = pages.parse().ok()?,
            ["boost", pages] => boost = pages.parse().unwrap_or(0),
            ["high", pages] => zones.last_mut()?.high = pages.parse::<u64>().unwrap_or(0).saturating_sub(boost),
            ["managed", pages] => zones.last_mut()?.managed = pages.parse().ok()?,
            ["protection:", ref above @ ..] => {
                let pages = above.iter().filter_map(|word| word.trim_matches(['(', ',', ')']).parse().ok());
                zones.last_mut()?.protection = pages.max().unwrap_or(0);
            }
            _ => {}
        }
    }
    (!zones.is_empty()).then_some(zones)
}

/// Free blocks of 1, 2, 4 and so on pages.
fn parse_free(text: &str) -> Option<FreePages> {
    let zone = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (node, name) = match [words.next()?, words.next()?, words.next()?, words.next()?] {
            ["Node", node, "zone", name] => (node.trim_end_matches(',').parse().ok()?, name.to_owned()),
            _ => return None,
        };
        let mut pages = 0_u64;
        for (order, blocks) in words.enumerate() {
            pages = pages.checked_add(blocks.parse::<u64>().ok()?.checked_mul(1_u64.checked_shl(order as u32)?)?)?;
        }
        Some(((node, name), pages))
    };
    text.lines().map(zone).collect()
}

impl ProcFs {
    /// All zones of all nodes, populated or not. The kernel tells of them only together with every CPU's part in each, which is dear on
    /// a large machine.
    pub fn zones(&self) -> Result<Vec<Zone>, ProcError> {
        self.parsed("proc/zoneinfo", "zones of nodes", parse_zones)
    }

    /// What is free of each zone (`/proc/buddyinfo`), which is cheap.
    pub fn free_by_zone(&self) -> Result<FreePages, ProcError> {
        self.parsed("proc/buddyinfo", "free blocks by zone", parse_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_of_two_nodes() {
        let text = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     2816
        boost    30
        min      35
        low      36
        high     40
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 150, 200, 200)
      nr_free_pages 2816
  pagesets
    cpu: 0
              count:    5
              high:     300
Node 1, zone  Movable
  pages free     100
        high     25
        managed  32768
        protection: (odd, 7)
";
        let zones = parse_zones(text).unwrap();
        let dma = Zone { node: 0, name: "DMA".into(), free: 2816, managed: 3840, high: 10, protection: 200 };
        let movable = Zone { node: 1, name: "Movable".into(), free: 100, managed: 32768, high: 25, protection: 7 };
        assert_eq!(zones, [dma, movable]);
        assert_eq!((zones[0].kept_of(2816), zones[0].kept_of(50)), (210, 50), "no more than is free");
        assert_eq!(parse_zones("garbage\n"), None);
    }

    #[test]
    fn free_pages_are_added_up() {
        let text = "Node 0, zone      DMA      1      0      3\nNode 1, zone  Movable     10      1      0\n";
        let free = parse_free(text).unwrap();
        assert_eq!(free, [((0, "DMA".to_owned()), 13), ((1, "Movable".to_owned()), 12)].into());
        for bad in ["Node 0, zone", "Node 0, zone DMA x", "Node 0, zone DMA 1 18446744073709551615"] {
            assert_eq!(parse_free(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_machine_reads() {
        let proc = ProcFs::new("/");
        let (zones, free) = (proc.zones().unwrap(), proc.free_by_zone().unwrap());
        let populated = zones.iter().filter(|zone| zone.managed > 0);
        assert!(populated.clone().count() > 0);
        for zone in populated {
            assert!(free.contains_key(&(zone.node, zone.name.clone())), "{zone:?} is not in {free:?}");
        }
    }
}
