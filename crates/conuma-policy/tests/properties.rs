//! The properties that the crate promises, on hosts and loads of any kind.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod world;

use conuma_policy::divide::{CoreClaim, cores};
use conuma_policy::{Layout, Priority};
use proptest::prelude::*;
use world::{World, name};

const AUTO: &str = "mode = \"auto\"\n[tuning]\nmoves_per_minute = 100000\n";

/// Three VMs on 16 cores with these guarantees, starting with four cores each.
fn three(guaranteed: [usize; 3], weights: [u32; 3]) -> World {
    let mut world = World::new("2n8c1t@8G", AUTO);
    for (index, vm) in ["a", "b", "c"].into_iter().enumerate() {
        let cpus = format!("{}-{}", index * 4, index * 4 + 3);
        world.vm(vm, guaranteed[index], &cpus, 1024).weight = weights[index];
        world.uses(vm, 0, 300);
        world.uses(vm, 1, 300);
    }
    world
}

fn claim() -> impl Strategy<Value = CoreClaim> {
    (1_u32..10, 1_usize..6, 1_usize..20, 0_usize..8).prop_map(|(weight, floor, wanted, held)| CoreClaim {
        weight,
        priority: Priority::Normal,
        held,
        floor,
        firm: floor,
        most: 20,
        wanted: wanted.max(floor),
        last: 1.0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever needs its guarantee has it after the first decision, whatever the others want.
    #[test]
    fn guarantee(loads in prop::array::uniform3(0.0_f64..20.0), later in prop::array::uniform3(0.0_f64..20.0),
                 guaranteed in prop::array::uniform3(1_usize..6)) {
        let mut world = three(guaranteed, [100, 1, 10_000]);
        for loads in [loads, later] {
            for (vm, load) in ["a", "b", "c"].into_iter().zip(loads) {
                world.load(vm, load);
            }
            // A report to see it, one more where the first fell into the load before.
            world.run(3);
            for ((vm, load), guaranteed) in ["a", "b", "c"].into_iter().zip(loads).zip(guaranteed) {
                let needs = guaranteed.min((load - 0.6).ceil().max(1.0) as usize);
                prop_assert!(world.cores(vm) >= needs, "{vm} wants {load}, is guaranteed {guaranteed}, has {}", world.cores(vm));
            }
        }
    }

    /// Nothing is lost and nothing is given twice (the world asserts it), and nobody gets more than its limit.
    #[test]
    fn conservation(loads in prop::collection::vec(prop::array::uniform3(0.0_f64..20.0), 1..6), used in prop::array::uniform3(0_u64..4000)) {
        let mut world = three([2, 3, 4], [100, 200, 300]);
        world.vms.get_mut(&name("b")).unwrap().limit.cores = Some(conuma_balancing::CoreDemand::Count(5));
        for loads in loads {
            for ((vm, load), used) in ["a", "b", "c"].into_iter().zip(loads).zip(used) {
                world.load(vm, load);
                world.uses(vm, 1, used);
            }
            world.run(4);
            prop_assert!(world.cores("b") <= 5);
        }
    }

    /// No core could go from one VM to another that has less of its weight and still wants it.
    #[test]
    fn fairness(claims in prop::collection::vec(claim(), 1..6), total in 1_usize..40) {
        let total = total.max(claims.iter().map(|claim| claim.floor).sum());
        let shares = cores(total, &claims);
        prop_assert!(shares.iter().sum::<usize>() <= total);
        for (poor, own) in claims.iter().zip(&shares) {
            prop_assert!(*own >= poor.floor);
            if *own >= poor.wanted.min(poor.most) {
                continue;
            }
            for (rich, its) in claims.iter().zip(&shares).filter(|(rich, its)| **its > rich.floor) {
                // The rich would have less of its weight without its last core than the poor has.
                let (has, rest) = (*own as f64 / f64::from(poor.weight), (its - 1) as f64 / f64::from(rich.weight));
                prop_assert!(has >= rest - 1e-9, "{poor:?} has {own}, {rich:?} has {its}");
            }
            prop_assert_eq!(shares.iter().sum::<usize>(), total, "one wants more and there is more");
        }
    }

    /// A load that does not change leads to no move any more, after it was found out once.
    #[test]
    fn stability_under_constant_load(loads in prop::array::uniform3(0.0_f64..20.0), used in prop::array::uniform3(0_u64..3000)) {
        let mut world = three([2, 3, 4], [100, 200, 300]);
        for ((vm, load), used) in ["a", "b", "c"].into_iter().zip(loads).zip(used) {
            world.load(vm, load);
            world.uses(vm, 0, used);
        }
        world.run(300);
        let settled = world.moved;
        world.run(300);
        prop_assert_eq!(world.moved, settled);
    }

    /// Nor does one that trembles by two percent, as real ones do; at most the rarest of coincidences.
    #[test]
    fn stability_under_a_trembling_load(loads in prop::array::uniform3(0.5_f64..20.0), seed in 1_u64..1000) {
        let mut world = three([2, 3, 4], [100, 200, 300]);
        let mut random = seed;
        let mut breath = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1.0 + 0.02 * ((random >> 33) as f64 / f64::from(1_u32 << 30) - 1.0)
        };
        let mut run = |world: &mut World, seconds: u32| {
            for _ in 0..seconds {
                for (vm, load) in ["a", "b", "c"].into_iter().zip(loads) {
                    world.load(vm, load * breath());
                }
                world.run(1);
            }
        };
        run(&mut world, 300);
        let settled = world.moved;
        run(&mut world, 300);
        prop_assert!(world.moved - settled <= 2, "{} moves", world.moved - settled);
    }

    /// A load that swings moves no more within any minute than the budget allows, and still gets something.
    #[test]
    fn budget_under_oscillating_load(high in prop::array::uniform3(4.0_f64..20.0), period in 2_u64..30, budget in 1_u32..8) {
        let mut world = three([1, 1, 1], [100, 100, 100]);
        let policy = format!("mode = \"auto\"\n[tuning]\nmoves_per_minute = {budget}\n");
        world.balancer.set_rules(conuma_policy::Rules::parse(&policy, "policy.toml").unwrap());
        for second in 0..300 {
            for (index, (vm, high)) in ["a", "b", "c"].into_iter().zip(high).enumerate() {
                let is_high = (second / period + index as u64).is_multiple_of(3);
                world.load(vm, if is_high { high } else { 0.3 });
            }
            world.run(1);
            let recent = world.spent.iter().filter(|(at, _)| world.now - *at < std::time::Duration::from_secs(60));
            let spent: u32 = recent.map(|(_, spent)| spent).sum();
            prop_assert!(spent <= 3 * budget, "{spent} moves within a minute");
        }
        prop_assert!(world.spent.iter().any(|(_, spent)| *spent > 0), "nothing moved at all");
    }

    /// Whoever gets more weight does not get fewer cores.
    #[test]
    fn monotonicity_in_weight(claims in prop::collection::vec(claim(), 2..6), total in 1_usize..40, more in 1_u32..10) {
        let total = total.max(claims.iter().map(|claim| claim.floor).sum());
        let before = cores(total, &claims);
        let mut heavier = claims.clone();
        heavier[0].weight += more;
        let after = cores(total, &heavier);
        prop_assert!(after[0] >= before[0], "{before:?} {after:?}");
    }
}

/// The division is the best there is: compared with every other one.
#[test]
fn fairness_is_exact() {
    let claims = |weights: [u32; 3], wanted: [usize; 3]| -> Vec<CoreClaim> {
        weights
            .into_iter()
            .zip(wanted)
            .map(|(weight, wanted)| CoreClaim {
                weight,
                wanted,
                floor: 1,
                firm: 1,
                most: 20,
                held: 0,
                last: 1.0,
                priority: Priority::Normal,
            })
            .collect()
    };
    for weights in [[1, 1, 1], [1, 2, 3], [5, 1, 2], [7, 7, 1]] {
        for wanted in [[9, 9, 9], [2, 9, 9], [9, 1, 4], [3, 3, 3]] {
            let (claims, total) = (claims(weights, wanted), 11);
            let sorted = |shares: &[usize]| {
                let mut levels: Vec<f64> =
                    shares.iter().zip(&claims).map(|(share, claim)| *share as f64 / f64::from(claim.weight)).collect();
                levels.sort_by(f64::total_cmp);
                levels
            };
            let ours = sorted(&cores(total, &claims));
            for a in 1..=wanted[0] {
                for b in 1..=wanted[1] {
                    for c in (1..=wanted[2]).filter(|c| a + b + c <= total) {
                        let other = sorted(&[a, b, c]);
                        let order = other
                            .iter()
                            .zip(&ours)
                            .map(|(other, ours)| other.total_cmp(ours))
                            .find(|order| order.is_ne());
                        // Only the lowest levels count that both could raise: the first difference must not be in favour of the other.
                        assert!(
                            order != Some(std::cmp::Ordering::Greater),
                            "{weights:?} {wanted:?}: {a} {b} {c} is fairer"
                        );
                    }
                }
            }
        }
    }
}

/// A host without cores, VMs without anything: no panic.
#[test]
fn odd_scenes_are_decided_on() {
    let mut world = World::new("1n1c1t@1G", AUTO);
    world.run(2);
    assert!(world.decide().is_empty());
    world.vm("a", 1, "0", 0);
    world.load("a", 9.0);
    world.run(5);
    assert_eq!(world.cpus("a"), "0");
    assert_eq!(Layout::default().cores_in(&"0-3".parse().unwrap()), []);
}
