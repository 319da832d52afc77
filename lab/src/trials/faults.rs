//! The policy, and faults of all kinds, one after the other on the same host where they leave it as they found it.

use anyhow::Result;

use super::grid::{GUESTS, TOPOLOGY};
use super::{Report, Trial, balance, daemon, guests, intruders};
use crate::host::Kit;
use crate::stage::Stage;

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    let open = || Stage::open(kit, "faults", TOPOLOGY, &GUESTS);
    let usual: [&[Trial<Stage>]; 4] = [&balance::TRIALS, &daemon::TRIALS, &guests::TRIALS, &intruders::TRIALS];
    report.series(&usual.concat(), open)?;
    if report.all() {
        report.series(&guests::UNAIDED, || Stage::open(kit, "unaided", TOPOLOGY, &guests::ALONE))?;
        let long: [&[Trial<Stage>]; 3] = [&balance::LONG, &daemon::LONG, &guests::LONG];
        report.series(&long.concat(), open)?;
    }
    Ok(())
}
