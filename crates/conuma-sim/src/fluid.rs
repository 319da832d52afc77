//! The policies to compare with. They need no engine: what they give is there at once.
//!
//! - *static*: each VM has its part of the host by guarantee and weight, for ever.
//! - *overcommit*: every VM has all cores, and the host's scheduler shares them by weight. Where more is wanted than there is, vCPUs are
//!   preempted while they hold locks and while others wait for them: with `r` cores wanted for each core, all work at
//!   `1 - penalty × min(r - 1, 1)` of their speed. Nobody knows where a vCPU will run, so of `n` nodes memory is near
//!   on one in `n`, where a trace has working sets.
//! - *greedy*: who asks first gets what is free, in whole cores, and gives back what it has not used for a second.
//! - *oracle*: knows what every VM wants, moves at once and for nothing, parts of cores too, and serves what would be lost before what
//!   can wait. Guarantees and limits hold. It does not look ahead: what nobody can exceed is in [`crate::bound`].
//! - *fair*: as the oracle, but by weight: what fairness is measured by.

use std::time::Duration;

use conuma_topology::CoreId;

use crate::load::Load;
use crate::outcome::{Meter, Moves, Outcome, SETTLED, Slice};
use crate::share::{Claim, fill};
use crate::site::Site;
use crate::trace::{Kind, Trace};

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fluid {
    /// See the module.
    Static,
    /// See the module.
    Overcommit,
    /// See the module.
    Greedy,
    /// See the module.
    Oracle,
    /// See the module.
    Fair,
}

/// What the comparison assumes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// What overcommitment costs, see the module.
    pub penalty: f64,
    /// What a core loses far from its memory, for each step of distance 10.
    pub far_loss: f64,
}

/// The longest step where rates change by themselves.
const STEP: Duration = Duration::from_millis(100);

/// Greedy takes back what was idle for so long.
const IDLE: f64 = 1.0;

/// What a VM is given for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Given {
    cores: f64,
    /// Cores are whole: threads in step see that.
    whole: bool,
    near: f64,
    /// All that costs speed besides far memory.
    speed: f64,
    /// Its memory, in bytes.
    memory: f64,
    /// Far memory costs nothing.
    free: bool,
}

/// Runs a trace. `fair` is what a fair division with perfect knowledge gives each VM.
pub fn run(trace: &Trace, site: &Site, policy: Fluid, terms: &Terms, fair: &[f64]) -> Outcome {
    let mut state = State::new(trace, site, policy);
    let meter = state.run(trace.end, terms);
    let names: Vec<String> = trace.vms.iter().map(|vm| vm.name.to_string()).collect();
    meter.finish(policy.name(), &names, fair, state.moves, Vec::new())
}

/// What each VM gets done by a fair division with perfect knowledge.
pub fn fair(trace: &Trace, site: &Site, terms: &Terms) -> Vec<f64> {
    State::new(trace, site, Fluid::Fair).run(trace.end, terms).useful()
}

impl Fluid {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Overcommit => "overcommit",
            Self::Greedy => "greedy",
            Self::Oracle => "oracle",
            Self::Fair => "fair",
        }
    }
}

struct State<'a> {
    site: &'a Site,
    policy: Fluid,
    weights: Vec<f64>,
    loads: Vec<Load<'a>>,
    moves: Moves,
    now: Duration,
    greedy: Greedy,
    /// Memory of each VM in an even division.
    memory: Vec<f64>,
}

impl<'a> State<'a> {
    fn new(trace: &'a Trace, site: &'a Site, policy: Fluid) -> Self {
        let count = trace.vms.len();
        Self {
            site,
            policy,
            weights: trace.vms.iter().map(|vm| f64::from(vm.terms.weight)).collect(),
            loads: trace.vms.iter().enumerate().map(|(place, vm)| Load::new(vm, site.limit(place))).collect(),
            moves: Moves::default(),
            now: Duration::ZERO,
            greedy: Greedy::new(site, count),
            memory: (0..count).map(|vm| site.initial(vm).total_memory().0 as f64).collect(),
        }
    }

    fn run(&mut self, end: Duration, terms: &Terms) -> Meter {
        let mut meter = Meter::new((0..self.loads.len()).map(|place| self.site.promise(place)));
        while self.now < end {
            let next = self.next(end);
            let seconds = (next - self.now).as_secs_f64();
            let given = self.divide(terms, seconds);
            for (place, (load, given)) in self.loads.iter_mut().zip(given).enumerate() {
                meter.add(place, self.now, &serve(load, given, terms.far_loss * self.site.steps_away, seconds));
            }
            self.now = next;
            for load in &mut self.loads {
                load.advance(next);
            }
        }
        meter
    }

    fn next(&self, end: Duration) -> Duration {
        let change = self.loads.iter().filter_map(Load::next_change).min().unwrap_or(end).min(end);
        let waits = self.loads.iter().any(|load| load.can_wait());
        let next = if waits || self.policy == Fluid::Greedy { change.min(self.now + STEP) } else { change };
        next.max(self.now + Duration::from_micros(1))
    }

    fn divide(&mut self, terms: &Terms, seconds: f64) -> Vec<Given> {
        let count = self.loads.len();
        let all = self.site.cores.len() as f64;
        let wants: Vec<f64> = self.loads.iter().map(Load::wants).collect();
        let held = Given { cores: 0.0, whole: true, near: 1.0, speed: 1.0, memory: 0.0, free: false };
        let given = |cores: Vec<f64>, of: Given| -> Vec<Given> {
            cores.into_iter().zip(&self.memory).map(|(cores, memory)| Given { cores, memory: *memory, ..of }).collect()
        };
        match self.policy {
            Fluid::Static => {
                let cores = |vm| self.site.layout.cores_in(&self.site.initial(vm).cpus).len() as f64;
                given((0..count).map(cores).collect(), held)
            }
            Fluid::Overcommit => {
                let ratio = wants.iter().sum::<f64>() / all;
                let speed = 1.0 - terms.penalty * (ratio - 1.0).clamp(0.0, 1.0);
                let claims: Vec<Claim> = (0..count).map(|vm| self.claim(vm, 0.0, wants[vm])).collect();
                let near = if self.site.has_memory { 1.0 / self.site.nodes.len() as f64 } else { 1.0 };
                given(fill(all, &claims), Given { whole: false, near, speed, ..held })
            }
            Fluid::Greedy => {
                let limits: Vec<usize> = (0..count).map(|vm| self.site.limit(vm)).collect();
                let moved = self.greedy.step(&wants, &limits, seconds);
                self.moves.cores += moved;
                self.moves.cores_later += if self.now > SETTLED { moved } else { 0 };
                let vm = |(place, cores): (usize, &Vec<(CoreId, usize)>)| {
                    let near = self.near(place, cores);
                    Given { cores: cores.len() as f64, near, memory: self.memory[place], ..held }
                };
                self.greedy.held.iter().enumerate().map(vm).collect()
            }
            Fluid::Oracle | Fluid::Fair => {
                let cores = if self.policy == Fluid::Fair { self.fairly(&wants) } else { self.at_best(&wants) };
                let fit = self.fit_of_all();
                let free = Given { whole: false, free: true, speed: fit, ..held };
                cores.into_iter().map(|cores| Given { cores, memory: f64::MAX, ..free }).collect()
            }
        }
    }

    fn claim(&self, vm: usize, floor: f64, cap: f64) -> Claim {
        Claim { floor, cap, weight: self.weights[vm] }
    }

    fn floor(&self, vm: usize, wants: f64) -> f64 {
        wants.min(self.site.guarantee(vm) as f64)
    }

    fn fairly(&self, wants: &[f64]) -> Vec<f64> {
        let claim = |(vm, wants): (usize, &f64)| self.claim(vm, self.floor(vm, *wants), *wants);
        fill(self.site.cores.len() as f64, &wants.iter().enumerate().map(claim).collect::<Vec<_>>())
    }

    /// What would be lost first, then what can wait.
    fn at_best(&self, wants: &[f64]) -> Vec<f64> {
        let first = |(vm, wants): (usize, &f64)| {
            let floor = self.floor(vm, *wants);
            self.claim(vm, floor, if self.loads[vm].can_wait() { floor } else { *wants })
        };
        let all = self.site.cores.len() as f64;
        let served = fill(all, &wants.iter().enumerate().map(first).collect::<Vec<_>>());
        let then = |(vm, (served, wants)): (usize, (&f64, &f64))| {
            self.claim(vm, *served, if self.loads[vm].can_wait() { *wants } else { *served })
        };
        fill(all, &served.iter().zip(wants).enumerate().map(then).collect::<Vec<_>>())
    }

    /// How well all working sets together fit the host.
    fn fit_of_all(&self) -> f64 {
        let wanted: f64 = self.loads.iter().map(|load| load.memory().0 as f64).sum();
        let there: f64 = self.site.host.memory.values().map(|bytes| bytes.0 as f64).sum();
        if wanted > there && there > 0.0 { there / wanted } else { 1.0 }
    }

    /// Memory stays where it was at first; each core uses an equal part of it.
    fn near(&self, vm: usize, cores: &[(CoreId, usize)]) -> f64 {
        let memory = self.site.initial(vm);
        let total = memory.total_memory().0 as f64;
        if !self.site.has_memory || total < 1.0 || cores.is_empty() {
            return 1.0;
        }
        let part = |(place, node): (usize, &conuma_topology::NodeId)| {
            let here = cores.iter().filter(|(_, of)| *of == place).count() as f64 / cores.len() as f64;
            here.min(memory.on(*node).0 as f64 / total)
        };
        self.site.nodes.iter().enumerate().map(part).sum()
    }
}

fn serve(load: &mut Load<'_>, given: Given, far: f64, seconds: f64) -> Slice {
    let (comes, wants, wanted) = (load.comes(), load.wants(), load.memory().0 as f64);
    let fit = if wanted > given.memory { given.memory / wanted } else { 1.0 };
    let loss = if given.free { 0.0 } else { (far * (1.0 - given.near)).min(1.0) };
    let speed = if given.whole { load.speed(given.cores.round() as usize) } else { wants.min(given.cores) };
    let busy = if load.kind() == Kind::Spin && wants > 0.0 { given.cores } else { wants.min(given.cores) };
    let done = load.work(speed * given.speed * fit * (1.0 - loss), seconds);
    let short = (wanted - given.memory).max(0.0);
    Slice {
        comes,
        wants,
        held: given.cores,
        done,
        busy: busy * seconds,
        near: given.near,
        memory: wanted,
        short,
        seconds,
    }
}

/// First come, first served.
#[derive(Debug)]
struct Greedy {
    pool: Vec<(CoreId, usize)>,
    held: Vec<Vec<(CoreId, usize)>>,
    /// For how long each VM has wanted more, or fewer, than it has.
    hungry: Vec<f64>,
    idle: Vec<f64>,
}

impl Greedy {
    /// Each has one core.
    fn new(site: &Site, count: usize) -> Self {
        let mut pool: Vec<_> = site.cores.iter().rev().copied().collect();
        let held = (0..count).map(|_| pool.pop().into_iter().collect()).collect();
        Self { pool, held, hungry: vec![0.0; count], idle: vec![0.0; count] }
    }

    /// Cores that changed hands, between VMs and the pool.
    fn step(&mut self, wants: &[f64], limits: &[usize], seconds: f64) -> u64 {
        let mut moved = 0;
        let whole: Vec<usize> =
            wants.iter().zip(limits).map(|(wants, limit)| (wants.ceil() as usize).clamp(1, *limit)).collect();
        for (vm, wants) in whole.iter().enumerate() {
            let has = self.held[vm].len();
            self.hungry[vm] = if has < *wants { self.hungry[vm] + seconds } else { 0.0 };
            self.idle[vm] = if has > *wants { self.idle[vm] + seconds } else { 0.0 };
            if self.idle[vm] >= IDLE {
                moved += (has - wants) as u64;
                let back = self.held[vm].split_off(*wants);
                self.pool.extend(back);
            }
        }
        let mut order: Vec<usize> = (0..whole.len()).filter(|vm| self.held[*vm].len() < whole[*vm]).collect();
        order.sort_by(|a, b| self.hungry[*b].total_cmp(&self.hungry[*a]));
        for vm in order {
            while self.held[vm].len() < whole[vm]
                && let Some(core) = self.pool.pop()
            {
                self.held[vm].push(core);
                moved += 1;
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overcommit(text: &str, penalty: f64) -> Outcome {
        let trace = Trace::parse(text, "x").expect("a trace");
        let site = Site::new(&trace, None).expect("a host");
        run(&trace, &site, Fluid::Overcommit, &Terms { penalty, far_loss: 0.15 }, &[])
    }

    #[test]
    fn overcommitment_costs_what_is_said() {
        let twice = "# host 2n2c1t@4G\n# seconds 10\n0,a,4\n0,b,4\n";
        assert!((overcommit(twice, 0.0).useful - 40.0).abs() < 1e-6);
        assert!((overcommit(twice, 0.3).useful - 28.0).abs() < 1e-6);
        let fits = "# host 2n2c1t@4G\n# seconds 10\n0,a,2\n0,b,2\n";
        let outcome = overcommit(fits, 0.3);
        assert!((outcome.useful - 40.0).abs() < 1e-6 && outcome.locality == 1.0, "nothing is far without working sets");
        let far = overcommit("# host 2n2c1t@4G\n# seconds 10\n0,a,2,64\n0,b,2,64\n", 0.3);
        assert!((far.useful - 40.0 * (1.0 - 0.15 / 2.0)).abs() < 1e-6, "{far:?}");
    }
}
