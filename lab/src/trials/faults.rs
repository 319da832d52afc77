//! Faults of all kinds, one after the other on the same host: the last leaves no VM. Then the policy, on a host of its own.

use anyhow::Result;

use super::grid::{GUESTS, TOPOLOGY};
use super::{Report, Trial, balance, daemon, guests, intruders, keepers, migrations, trespassers};
use crate::host::Kit;
use crate::stage::Stage;

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    let open = || Stage::open(kit, "faults", TOPOLOGY, &GUESTS);
    let usual: [&[Trial<Stage>]; 6] = [
        &daemon::TRIALS,
        &guests::TRIALS,
        &keepers::TRIALS,
        &trespassers::TRIALS,
        &migrations::TRIALS,
        &intruders::TRIALS,
    ];
    report.series(&usual.concat(), open)?;
    if report.all() {
        let unaided: [&[Trial<Stage>]; 2] = [&guests::UNAIDED, &trespassers::UNGUARDED];
        report.series(&unaided.concat(), || Stage::open(kit, "unaided", TOPOLOGY, &guests::ALONE))?;
        let long: [&[Trial<Stage>]; 3] = [&daemon::LONG, &guests::LONG, &keepers::LONG];
        report.series(&long.concat(), open)?;
    }
    let policy: [&[Trial<Stage>]; 2] = [&balance::TRIALS, if report.all() { &balance::LONG } else { &[] }];
    report.series(&policy.concat(), || Stage::open(kit, "policy", TOPOLOGY, &GUESTS))
}
