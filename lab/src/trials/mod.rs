//! The lab's tests: each trial is a body that runs in a virtual host; trials of one series share its boot.

mod balance;
mod crowd;
mod daemon;
mod faults;
mod grid;
mod guests;
mod intruders;
mod keepers;
mod migrations;
mod odd;
mod shapes;
mod trespassers;

use std::io::Write;
use std::time::Instant;

use anyhow::Result;

use crate::host::{Kit, Lab};
use crate::stage::Stage;
pub(crate) use daemon::all_is_well;
pub(crate) use grid::{GUESTS, TOPOLOGY};
pub(crate) use guests::REFUSED;

/// How often a trial is run again that the emulator has failed.
const AGAIN: usize = 2;

/// What a trial says in the end.
pub(crate) type Verdict = Result<()>;

/// A test.
pub(crate) struct Trial<S> {
    /// Its name, unique among all.
    pub(crate) name: &'static str,
    /// What it does; an error is a failure.
    pub(crate) body: fn(&S) -> Verdict,
}

// Not derived: what it runs on need not be `Clone`.
impl<S> Clone for Trial<S> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

/// How many trials ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Not run, as something is missing here.
    pub skipped: usize,
}

/// Runs all trials whose name contains `filter`, with `all` also those that take long, and prints what became of each.
pub fn run(kit: &Kit, filter: &str, all: bool) -> Result<Tally> {
    let mut report = Report { filter: filter.to_owned(), all, tally: Tally::default() };
    shapes::run(kit, &mut report)?;
    grid::run(kit, &mut report)?;
    if all {
        crowd::run(kit, &mut report)?;
    }
    faults::run(kit, &mut report)?;
    odd::run(kit, &mut report)?;
    Ok(report.tally)
}

/// Counts and prints.
pub(crate) struct Report {
    filter: String,
    all: bool,
    tally: Tally,
}

impl Report {
    /// Whether trials that take long are wanted.
    pub(crate) fn all(&self) -> bool {
        self.all
    }

    /// Whether a trial of this name is wanted: the filter names parts of names, with `|` between them.
    fn names(&self, trial: &str) -> bool {
        self.filter.split('|').any(|part| trial.contains(part))
    }

    /// Whether a series with these trials has anything to run.
    pub(crate) fn wants<S>(&self, trials: &[Trial<S>]) -> bool {
        trials.iter().any(|trial| self.names(trial.name))
    }

    /// Counts the wanted trials of these as skipped, and says why.
    pub(crate) fn skip<S>(&mut self, trials: &[Trial<S>], reason: &str) -> Result<()> {
        let wanted: Vec<&Trial<S>> = trials.iter().filter(|trial| self.names(trial.name)).collect();
        for trial in wanted {
            self.tally.skipped += 1;
            writeln!(std::io::stdout(), "lab trial {} ... skipped: {reason}", trial.name)?;
        }
        Ok(())
    }

    /// Runs the wanted trials of a series on its stage. A stage that could not be opened fails them all; when the emulator has
    /// failed one under a trial, the trial is run again on a new one.
    pub(crate) fn series<S: Theatre>(&mut self, trials: &[Trial<S>], open: impl Fn() -> Result<S>) -> Result<()> {
        if !self.wants(trials) {
            return Ok(());
        }
        let mut stage = open();
        let wanted: Vec<&Trial<S>> = trials.iter().filter(|trial| self.names(trial.name)).collect();
        for trial in wanted {
            let began = Instant::now();
            let mut verdict = perform(trial, &stage);
            for _ in 0..AGAIN {
                let failed_by_emulator = stage.as_ref().is_ok_and(|stage| verdict.is_err() && !stage.is_sound());
                if !failed_by_emulator {
                    break;
                }
                let name = trial.name;
                let why = verdict.err().map(|error| format!("{error:#}")).unwrap_or_default();
                let epitaph = stage.as_ref().map(Theatre::last_words).unwrap_or_default();
                writeln!(
                    std::io::stdout(),
                    "lab trial {name}: the emulator failed it; once more on a new host ({why}){epitaph}"
                )?;
                // The old one must be gone first: there is room for one.
                if let Ok(stage) = stage {
                    stage.collect_logs();
                }
                stage = open();
                verdict = perform(trial, &stage);
            }
            let seconds = began.elapsed().as_secs_f32();
            let mut out = std::io::stdout().lock();
            match verdict {
                Ok(()) => {
                    self.tally.passed += 1;
                    writeln!(out, "lab trial {} ... ok ({seconds:.1} s)", trial.name)?;
                }
                Err(error) => {
                    self.tally.failed += 1;
                    writeln!(out, "lab trial {} ... FAILED ({seconds:.1} s)\n{error:?}\n", trial.name)?;
                    if let Ok(stage) = &stage {
                        stage.collect_logs();
                    }
                }
            }
        }
        Ok(())
    }
}

fn perform<S>(trial: &Trial<S>, stage: &Result<S>) -> Verdict {
    match stage {
        Ok(stage) => (trial.body)(stage),
        Err(error) => Err(anyhow::anyhow!("its host did not come up: {error:#}")),
    }
}

/// Where trials run.
pub(crate) trait Theatre {
    /// Whether what failed in it can be blamed on what was tested.
    fn is_sound(&self) -> bool;

    /// Keeps what was logged in it.
    fn collect_logs(&self);

    /// What its host said last.
    fn last_words(&self) -> String;
}

impl Theatre for Lab {
    fn is_sound(&self) -> bool {
        self.is_alive()
    }

    fn collect_logs(&self) {
        Self::collect_logs(self);
    }

    fn last_words(&self) -> String {
        Self::last_words(self)
    }
}

impl Theatre for Stage {
    fn is_sound(&self) -> bool {
        Self::is_sound(self)
    }

    fn collect_logs(&self) {
        self.lab.collect_logs();
    }

    fn last_words(&self) -> String {
        self.lab.last_words()
    }
}
