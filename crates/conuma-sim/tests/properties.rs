//! What holds for any load.
#![allow(clippy::unwrap_used)]

use conuma_sim::bound;
use conuma_sim::fault::Faults;
use conuma_sim::fluid::{self, Fluid, Terms};
use conuma_sim::outcome::Outcome;
use conuma_sim::site::Site;
use conuma_sim::trace::Trace;
use conuma_sim::trace::generate::{Mix, generate};
use conuma_sim::world::{self, Options};
use proptest::prelude::*;

const TERMS: Terms = Terms { penalty: 0.3, far_loss: 0.15 };

fn run(trace: &Trace, options: &Options) -> Outcome {
    let site = Site::new(trace, None).unwrap();
    world::run(trace, &site, options, &fluid::fair(trace, &site, &TERMS)).unwrap()
}

fn faults() -> Faults {
    Faults { silent: 0.05, refuse: 0.05, partial: 0.2, resets_per_hour: 60.0, crashes_per_hour: 60.0, mute: Vec::new() }
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let trace = generate(Mix::Random, 3).unwrap();
    let options = Options { faults: faults(), ..Options::default() };
    assert_eq!(run(&trace, &options), run(&trace, &options));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_invariant_breaks_at_any_event(seed in 0_u64..1 << 32) {
        let trace = generate(Mix::Random, seed).unwrap();
        let outcome = run(&trace, &Options { seed, faults: faults(), audit: true, ..Options::default() });
        prop_assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
    }

    #[test]
    fn guarantees_hold_on_random_traces(seed in 0_u64..1 << 32) {
        let trace = generate(Mix::Random, seed).unwrap();
        let outcome = run(&trace, &Options { seed, audit: true, ..Options::default() });
        prop_assert_eq!(outcome.guarantee_violations, 0, "{:#?}", outcome);
        prop_assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
    }

    #[test]
    fn work_is_conserved(seed in 0_u64..1 << 32) {
        let trace = generate(Mix::Random, seed).unwrap();
        let site = Site::new(&trace, None).unwrap();
        let fair = fluid::fair(&trace, &site, &TERMS);
        let of = |policy| fluid::run(&trace, &site, policy, &TERMS, &fair);
        let ours = run(&trace, &Options::default());
        let most = bound::most(&trace, &site);
        for outcome in [&ours, &of(Fluid::Oracle), &of(Fluid::Static), &of(Fluid::Overcommit), &of(Fluid::Greedy)] {
            prop_assert!(outcome.useful <= outcome.demand + 1e-6, "{outcome:?}");
            prop_assert!(outcome.useful <= most + 1e-6, "{outcome:?} beyond {most}");
            prop_assert!((outcome.demand - ours.demand).abs() < 1e-3 * (1.0 + ours.demand));
        }
    }
}
