//! All policies on the same trace.

use serde::Serialize;

use crate::bound;
use crate::fluid::{self, Fluid};
use crate::outcome::Outcome;
use crate::site::{Site, SiteError};
use crate::trace::Trace;
use crate::trace::stats::{Demand, Stats};
use crate::world::{self, Options};

/// Ours does at least this part of what the oracle does.
pub const OF_ORACLE: f64 = 0.95;

/// Ours does at least so many times what the static partition does.
pub const OVER_STATIC: f64 = 1.25;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Policy {
    /// Each VM has its part for ever.
    Static,
    /// All VMs on all cores, by weight.
    Overcommit,
    /// Who asks first.
    Greedy,
    /// Engine and policy of this project.
    Ours,
    /// Perfect knowledge of what is wanted now, for nothing.
    Oracle,
}

/// All of them, in the order in which they are shown.
pub const POLICIES: [Policy; 5] = [Policy::Static, Policy::Overcommit, Policy::Greedy, Policy::Ours, Policy::Oracle];

/// What came of a trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Which.
    pub trace: String,
    /// On which host.
    pub host: String,
    /// Its cores.
    pub cores: usize,
    /// How long, in seconds.
    pub seconds: f64,
    /// How many VMs.
    pub vms: usize,
    /// What they want together, in cores.
    pub wanted: Demand,
    /// Useful core-seconds that no policy can exceed.
    pub bound: f64,
    /// By policy.
    pub outcomes: Vec<Outcome>,
    /// How ours does beside others, if all that takes was run.
    pub verdict: Option<Verdict>,
}

/// How ours does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// Useful core-seconds: of the oracle's.
    pub of_oracle: f64,
    /// Of the static partition's.
    pub over_static: f64,
    /// Times that a VM did not have its guarantee in time.
    pub guarantee_violations: u64,
    /// Whether all is as promised.
    pub kept: bool,
}

/// Runs these policies.
pub fn compare(
    trace: &Trace,
    host: Option<&str>,
    policies: &[Policy],
    penalty: f64,
    options: &Options,
) -> Result<Comparison, SiteError> {
    let site = Site::new(trace, host)?;
    let terms = fluid::Terms { penalty, far_loss: options.rules.tuning.far_loss };
    let fair = fluid::fair(trace, &site, &terms);
    let run = |policy: &Policy| {
        let fluid = |policy| Ok(fluid::run(trace, &site, policy, &terms, &fair));
        match policy {
            Policy::Static => fluid(Fluid::Static),
            Policy::Overcommit => fluid(Fluid::Overcommit),
            Policy::Greedy => fluid(Fluid::Greedy),
            Policy::Oracle => fluid(Fluid::Oracle),
            Policy::Ours => world::run(trace, &site, options, &fair),
        }
    };
    let outcomes: Vec<Outcome> = policies.iter().map(run).collect::<Result<_, _>>()?;
    let Stats { total, .. } = trace.stats();
    Ok(Comparison {
        trace: trace.name.clone(),
        host: site.shape.clone(),
        cores: site.cores.len(),
        seconds: trace.end.as_secs_f64(),
        vms: trace.vms.len(),
        wanted: total,
        bound: bound::most(trace, &site),
        verdict: verdict(&outcomes),
        outcomes,
    })
}

fn verdict(outcomes: &[Outcome]) -> Option<Verdict> {
    let of = |name: &str| outcomes.iter().find(|outcome| outcome.policy == name);
    let (ours, even, oracle) = (of("ours")?, of("static")?, of("oracle")?);
    let share = |of: &Outcome| if of.useful > 0.0 { ours.useful / of.useful } else { 1.0 };
    let (of_oracle, over_static) = (share(oracle), share(even));
    let kept = of_oracle >= OF_ORACLE
        && over_static >= OVER_STATIC
        && ours.guarantee_violations == 0
        && ours.broken.is_empty();
    Some(Verdict { of_oracle, over_static, guarantee_violations: ours.guarantee_violations, kept })
}
