//! Faults of all kinds, one after the other on the same host where they leave it as they found it; then the policy, which does not.

use anyhow::Result;

use super::grid::{GUESTS, TOPOLOGY};
use super::{Report, Trial, balance, daemon, guests, intruders};
use crate::host::Kit;
use crate::stage::Stage;

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    let open = || Stage::open(kit, "faults", TOPOLOGY, &GUESTS);
    let usual: [&[Trial<Stage>]; 4] = [&daemon::TRIALS, &guests::TRIALS, &intruders::TRIALS, &balance::TRIALS];
    report.series(&usual.concat(), open)?;
    if report.all() {
        report.series(&guests::UNAIDED, || Stage::open(kit, "unaided", TOPOLOGY, &guests::ALONE))?;
        let long: [&[Trial<Stage>]; 3] = [&daemon::LONG, &guests::LONG, &balance::LONG];
        report.series(&long.concat(), open)?;
    }
    Ok(())
}
