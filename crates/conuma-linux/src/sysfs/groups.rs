//! From what every CPU says of its neighbours to groups that do not contradict each other.

use std::collections::BTreeMap;

use conuma_topology::{CpuId, CpuSet};

/// Groups of CPUs, disjoint, in the order of their first CPU.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Believed {
    pub(super) groups: Vec<CpuSet>,
    /// CPUs that say something else than the group they are in, or are in none.
    pub(super) dissenters: CpuSet,
}

/// Believes a group when its lowest CPU claims it and no CPU of it is in an earlier one.
///
/// The kernel makes these masks symmetric, so in an honest machine every member claims its group. Where
/// they differ the lowest CPU is as good a witness as any, and one rule gives one answer.
pub(super) fn believe(claims: &BTreeMap<CpuId, CpuSet>) -> Believed {
    let mut believed = Believed::default();
    let mut taken = CpuSet::new();
    for (cpu, claim) in claims {
        if claim.first() == Some(*cpu) && claim.is_disjoint(&taken) {
            taken.extend(claim.iter());
            for member in claim.iter().filter(|member| claims.get(member) != Some(claim)) {
                believed.dissenters.insert(member);
            }
            believed.groups.push(claim.clone());
        }
    }
    for cpu in claims.keys().filter(|cpu| !taken.contains(**cpu)) {
        believed.dissenters.insert(*cpu);
    }
    believed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(claims: &[(u32, &str)], groups: &[&str], dissenters: &str) {
        let set = |text: &str| text.parse::<CpuSet>().expect("a list");
        let claims = claims.iter().map(|(cpu, claim)| (CpuId(*cpu), set(claim))).collect();
        let expected = Believed { groups: groups.iter().map(|text| set(text)).collect(), dissenters: set(dissenters) };
        assert_eq!(believe(&claims), expected);
    }

    #[test]
    fn honest_claims_are_believed() {
        check(&[(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")], &["0-1", "2-3"], "");
        check(&[(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")], &["0,2", "1,3"], "");
    }

    #[test]
    fn the_lowest_cpu_decides() {
        check(&[(0, "0-1"), (1, "1")], &["0-1"], "1");
        check(&[(0, "0"), (1, "0-1")], &["0"], "1");
        check(&[(0, "0-2"), (1, "1-2"), (2, "0-2")], &["0-2"], "1");
    }

    #[test]
    fn groups_never_overlap() {
        check(&[(0, "0,2"), (1, "1-2"), (2, "0,2")], &["0,2"], "1");
    }
}
