//! Sets, amounts of memory, ids and JSON: laws that hold for all values.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use conuma_topology::{Bytes, CpuId, CpuSet, Machine, NodeId, PciAddress};
use proptest::collection::btree_set;
use proptest::prelude::*;

fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
    prop_oneof![btree_set(0..70_u32, 0..40), btree_set(0..5000_u32, 0..20)]
}

fn set(numbers: &BTreeSet<u32>) -> CpuSet {
    numbers.iter().copied().map(CpuId).collect()
}

fn back(set: &CpuSet) -> BTreeSet<u32> {
    set.iter().map(|id| id.0).collect()
}

proptest! {
    #[test]
    fn a_set_is_what_was_put_in(a in numbers()) {
        let set = set(&a);
        prop_assert_eq!(back(&set), a.clone());
        prop_assert_eq!(set.len(), a.len());
        prop_assert_eq!(set.is_empty(), a.is_empty());
        prop_assert_eq!(set.first().map(|id| id.0), a.first().copied());
        prop_assert_eq!(set.last().map(|id| id.0), a.last().copied());
    }

    #[test]
    fn sets_combine_like_sets(a in numbers(), b in numbers()) {
        let (x, y) = (set(&a), set(&b));
        prop_assert_eq!(back(&x.union(&y)), a.union(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(back(&x.intersection(&y)), a.intersection(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(back(&x.difference(&y)), a.difference(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
        prop_assert_eq!(x.is_disjoint(&y), a.is_disjoint(&b));
    }

    #[test]
    fn equal_sets_are_equal_however_they_came_about(a in numbers(), b in numbers()) {
        let mut grown = set(&a);
        grown.extend(b.iter().copied().map(CpuId));
        for id in b.difference(&a) {
            prop_assert!(grown.remove(CpuId(*id)));
            prop_assert!(!grown.remove(CpuId(*id)));
        }
        prop_assert_eq!(grown, set(&a));
    }

    #[test]
    fn lists_and_masks_read_back(a in numbers()) {
        let set = set(&a);
        prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set.clone());
        prop_assert_eq!(CpuSet::from_mask(&set.to_mask()).unwrap(), set.clone());
        prop_assert_eq!(serde_json::from_str::<CpuSet>(&serde_json::to_string(&set).unwrap()).unwrap(), set);
    }

    #[test]
    fn ranges_are_filled(first in 0..300_u32, last in 0..300_u32) {
        prop_assert_eq!(back(&CpuSet::range(first, last)), (first..=last).collect::<BTreeSet<_>>());
    }

    #[test]
    fn no_text_makes_a_set_panic(text in "[-0-9,a-fx ]{0,24}") {
        let _ = text.parse::<CpuSet>();
        let _ = CpuSet::from_mask(&text);
        let _ = text.parse::<PciAddress>();
    }

    #[test]
    fn amounts_read_back_exactly(bytes in any::<u64>(), shift in 0..50_u32) {
        let amount = Bytes(bytes >> shift << (shift / 2));
        prop_assert_eq!(amount.exact().parse::<Bytes>().unwrap(), amount);
        prop_assert_eq!(serde_json::from_str::<Bytes>(&serde_json::to_string(&amount).unwrap()).unwrap(), amount);
    }

    #[test]
    fn a_shown_amount_is_off_by_less_than_a_tenth(bytes in 1..u64::MAX / 2) {
        let shown = Bytes(bytes).to_string().parse::<Bytes>().unwrap();
        prop_assert!(shown.0.abs_diff(bytes) <= bytes / 10, "{shown}");
    }

    #[test]
    fn addresses_read_back(domain in any::<u32>(), bus in any::<u8>(), device in 0..32_u8, function in 0..8_u8) {
        let address = PciAddress { domain, bus, device, function };
        prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
    }
}

#[test]
fn wrong_lists_say_what_is_wrong() {
    let check = |text: &str, reason: &str| {
        let error = text.parse::<CpuSet>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    check("0-", "not a number");
    check("3-1", "runs backwards");
    check("0,70000", "too large");
    check("0,,1", "not a number");
}

#[test]
fn wrong_amounts_say_what_is_wrong() {
    for text in ["", "G", "-1G", "1.2.3G", "1Q", "99999999999999T"] {
        let error = text.parse::<Bytes>().unwrap_err().to_string();
        assert!(error.contains("is not an amount of memory"), "{error}");
    }
    assert_eq!("1.5g".parse::<Bytes>().unwrap(), Bytes::mib(1536));
    assert_eq!("2 GiB".parse::<Bytes>().unwrap(), Bytes::gib(2));
}

fn odd_machine() -> Machine {
    let text = "2p1n2c2t@1G; node2 mem=2G huge=2M:4:1; node0 free=1M; off=3; dist=10,21,31/21,10,31/31,31,10; \
                dev 0000:3b:00.0 node=1 class=020000 vendor=15b3 device=1017 driver=mlx5_core iommu=4 gives=eth0; \
                dev 0000:3b:00.1 node=1 pf=0000:3b:00.0";
    text.parse().unwrap()
}

#[test]
fn a_machine_survives_json() {
    let machine = odd_machine();
    let json = serde_json::to_string(&machine).unwrap();
    assert_eq!(serde_json::from_str::<Machine>(&json).unwrap(), machine);
    // Also where a message wraps it in a way that makes serde buffer it.
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Wrapped {
        Machine(Machine),
    }
    let Wrapped::Machine(wrapped) = serde_json::from_str(&json).unwrap();
    assert_eq!(wrapped, machine);
}

#[test]
fn json_of_another_schema_is_refused() {
    let json = serde_json::to_string(&odd_machine()).unwrap().replace("\"schema\":1", "\"schema\":2");
    let error = serde_json::from_str::<Machine>(&json).unwrap_err().to_string();
    assert!(error.contains("schema 2; this Conuma reads schema 1"), "{error}");
}

#[test]
fn the_nearest_cpus_of_a_node_without_cpus_follow_hmat_then_distance() {
    let mut machine: Machine =
        "3n2c@1G; node3 mem=1G; dist=10,20,20,30/20,10,20,20/20,20,10,20/30,20,20,10".parse().unwrap();
    assert_eq!(machine.nearest_cpus(NodeId(0)).to_string(), "0-1");
    assert_eq!(machine.nearest_cpus(NodeId(3)).to_string(), "2-5");
    let link = |initiator, access_class| conuma_topology::HmatLink {
        initiators: [NodeId(initiator)].into(),
        target: NodeId(3),
        access_class,
        read_latency_ns: None,
        write_latency_ns: None,
        read_bandwidth_mbps: None,
        write_bandwidth_mbps: None,
    };
    machine.hmat = vec![link(2, 0), link(0, 1)];
    assert_eq!(machine.nearest_cpus(NodeId(3)).to_string(), "0-1");
}
