//! The daemon's loop in simulated time: the real engine and the real policy, with simulated guests and actuators.
//!
//! Time goes from event to event: a load changes, an action is done, the engine wants to be asked, a report is due. Between two events
//! every rate is constant, so what guests do is integrated exactly; where rates change by themselves (late work, pages and memory
//! that move) a step is at most [`Options::step`] long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_balancing::{
    Engine, Event, Notice, Report, Timing, Verdict, VmSeen, VmSpec, check_against_reality, check_ledger,
};
use conuma_policy::{Balancer, Mode, Rules, VmFacts, WallTime, scene_of};
use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

use crate::actuator::{Actuators, Latency, perform};
use crate::fault::Faults;
use crate::guest::{Guest, Life, Rates};
use crate::lifecycle::{self, Mishap};
use crate::outcome::{Meter, Moves, Outcome, SETTLED};
use crate::site::{Site, SiteError};
use crate::trace::Trace;

/// When guests report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cadence {
    /// All are asked so often, in seconds.
    pub tick: f64,
    /// A guest tells unasked that tasks waited for so long ...
    pub stall_ms: u64,
    /// ... within such a window, and once in a window (PSI `some`).
    pub window_ms: u64,
    /// After that it is asked again so soon, as its counters then speak of the new load only ...
    pub again_ms: u64,
    /// ... and so often.
    pub times: u32,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { tick: 1.0, stall_ms: 50, window_ms: 500, again_ms: 100, times: 4 }
    }
}

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of all that is random.
    pub seed: u64,
    /// When guests report.
    pub cadence: Cadence,
    /// How long things take.
    pub latency: Latency,
    /// What goes wrong.
    pub faults: Faults,
    /// The policy file. Its mode counts as `auto`.
    pub rules: Rules,
    /// The longest step where rates change by themselves.
    pub step: Duration,
    /// Whether all invariants are checked against what is really in force after every event, or only once a tick.
    pub audit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            cadence: Cadence::default(),
            latency: Latency::default(),
            faults: Faults::default(),
            rules: Rules::default(),
            step: Duration::from_millis(100),
            audit: false,
        }
    }
}

/// Runs a trace with the engine and the policy. `fair` is what a fair division with perfect knowledge gives each VM.
pub fn run(trace: &Trace, site: &Site, options: &Options, fair: &[f64]) -> Result<Outcome, SiteError> {
    let mut world = World::new(trace, site, options)?;
    world.run(trace.end);
    let names: Vec<String> = trace.vms.iter().map(|vm| vm.name.to_string()).collect();
    Ok(world.meter.finish("ours", &names, fair, world.moves, world.broken))
}

/// Defects are told once each, and no more than so many.
const MOST_BROKEN: usize = 20;

struct World<'a> {
    site: &'a Site,
    options: &'a Options,
    rates: Rates,
    engine: Engine,
    balancer: Balancer,
    weights: BTreeMap<VmName, u32>,
    guests: Vec<Guest<'a>>,
    presses: Vec<Press>,
    places: BTreeMap<VmName, usize>,
    actuators: Actuators,
    mishaps: Vec<Mishap>,
    meter: Meter,
    moves: Moves,
    broken: Vec<String>,
    now: Duration,
    next_tick: Duration,
    /// When the engine wants to be asked.
    deadline: Option<Duration>,
}

/// What a guest's pressure trigger has seen.
#[derive(Debug, Clone, Copy, Default)]
struct Press {
    /// Stalled since the last report or the last window without a stall.
    stalled: Duration,
    /// When it last stalled.
    last: Duration,
    /// It may tell again from then on.
    quiet_until: Duration,
    /// When it is asked again, and how often still.
    again: Option<(Duration, u32)>,
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace, site: &'a Site, options: &'a Options) -> Result<Self, SiteError> {
        let mut engine = Engine::new(site.host.clone(), Timing::default());
        let guests: Vec<Guest<'a>> =
            trace.vms.iter().enumerate().map(|(place, vm)| Guest::new(vm, place, site)).collect();
        for (spec, guest) in site.vms.iter().zip(&guests) {
            let refused =
                |why: conuma_balancing::Refusal| SiteError::Refused { vm: spec.name.to_string(), why: why.to_string() };
            engine.start(spec.clone(), Duration::ZERO).map_err(refused)?;
            engine.update(Event::VmStarted { vm: spec.name.clone(), seen: guest.seen() }, Duration::ZERO);
            let holding = guest.using.clone();
            let event = Event::AgentConnected { vm: spec.name.clone(), newest: 0, holding };
            engine.update(event, Duration::ZERO);
        }
        let mode = Mode::Auto;
        let mut world = Self {
            site,
            options,
            rates: options.latency.rates(),
            engine,
            balancer: Balancer::new(Rules { mode, ..options.rules.clone() }),
            weights: trace.vms.iter().map(|vm| (vm.name.clone(), vm.terms.weight)).collect(),
            presses: vec![Press::default(); guests.len()],
            places: trace.vms.iter().enumerate().map(|(place, vm)| (vm.name.clone(), place)).collect(),
            actuators: Actuators::new(options.latency.clone(), options.faults.clone(), options.seed),
            mishaps: lifecycle::mishaps(&options.faults, guests.len(), trace.end, options.seed),
            meter: Meter::new((0..guests.len()).map(|place| site.promise(place))),
            guests,
            moves: Moves::default(),
            broken: Vec::new(),
            now: Duration::ZERO,
            next_tick: Duration::ZERO,
            deadline: None,
        };
        world.pump();
        Ok(world)
    }

    fn run(&mut self, end: Duration) {
        while self.now < end {
            let mut touched = self.deliver();
            touched |= self.live();
            let news = self.report();
            if touched || self.deadline.is_some_and(|due| due <= self.now) {
                self.pump();
            }
            if news {
                self.decide();
            }
            if self.options.audit && (touched || news) {
                self.audit();
            }
            let next = self.next(end);
            self.pass(next);
        }
    }

    /// When something happens next.
    fn next(&self, end: Duration) -> Duration {
        let mut next = end.min(self.next_tick);
        let mut sooner = |time: Option<Duration>| {
            if let Some(time) = time {
                next = next.min(time);
            }
        };
        sooner(self.actuators.next());
        sooner(self.deadline);
        sooner(self.mishaps.last().map(|mishap| mishap.at));
        let mut changes = false;
        for (guest, press) in self.guests.iter().zip(&self.presses) {
            sooner(guest.load.next_change());
            match guest.life {
                Life::Boots(until) | Life::Dead(until) => sooner(Some(until)),
                Life::Up => {
                    sooner(press.again.map(|(at, _)| at));
                    if guest.stalls() {
                        sooner(Some(self.fires(press)));
                    }
                    changes |= guest.load.late() > 0.0 || guest.load.can_wait() && guest.stalls();
                    changes |= guest.plugs() || guest.pages.moves();
                }
            }
        }
        if changes {
            next = next.min(self.now + self.options.step);
        }
        next.max(self.now + Duration::from_micros(1))
    }

    /// When a guest that stalls from now on tells it.
    fn fires(&self, press: &Press) -> Duration {
        let stall = Duration::from_millis(self.options.cadence.stall_ms);
        (self.now + stall.saturating_sub(press.stalled)).max(press.quiet_until)
    }

    /// Time passes until `next`, at constant rates.
    fn pass(&mut self, next: Duration) {
        let span = next.saturating_sub(self.now);
        let seconds = span.as_secs_f64();
        let far_loss = self.options.rules.tuning.far_loss;
        let window = Duration::from_millis(self.options.cadence.window_ms);
        for (place, guest) in self.guests.iter_mut().enumerate() {
            let press = &mut self.presses[place];
            if guest.stalls() {
                press.stalled += span;
                press.last = next;
            } else if next.saturating_sub(press.last) > window {
                press.stalled = Duration::ZERO;
            }
            match guest.run(seconds, far_loss, &self.rates, self.site) {
                Some(slice) => self.meter.add(place, self.now, &slice),
                None => self.meter.absent(place),
            }
        }
        self.now = next;
        for place in 0..self.guests.len() {
            let guest = &mut self.guests[place];
            guest.load.advance(next);
            if guest.plugs() && guest.plug(seconds, &self.rates, self.site) {
                self.engine.update(Event::SizeChanged { vm: guest.name.clone() }, next);
                self.deadline = Some(next);
            }
        }
    }

    /// Actions that are done by now.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        while let Some(errand) = self.actuators.take(self.now) {
            let guest = &mut self.guests[errand.guest];
            if guest.is_alive()
                && let Some(outcome) = perform(guest, &errand.action, errand.fate, self.site)
            {
                self.engine.update(Event::Done { id: errand.action.id, outcome }, self.now);
                any = true;
            }
        }
        any
    }

    /// Guests that reset, end, boot and are started.
    fn live(&mut self) -> bool {
        let mut any = false;
        let boot = Duration::from_secs_f64(self.options.latency.boot);
        while let Some(mishap) = self.mishaps.pop_if(|mishap| mishap.at <= self.now) {
            let guest = &mut self.guests[mishap.guest];
            if guest.life != Life::Up {
                continue;
            }
            any = true;
            let vm = guest.name.clone();
            self.presses[mishap.guest] = Press::default();
            self.actuators.forget(mishap.guest, !mishap.ends);
            if mishap.ends {
                guest.life = Life::Dead(self.now + Duration::from_secs(1));
                self.balancer.forget(&vm);
                self.engine.update(Event::VmGone { vm }, self.now);
            } else {
                guest.boot(self.now + boot, self.now, self.site);
                self.engine.update(Event::VmReset { vm }, self.now);
            }
        }
        for place in 0..self.guests.len() {
            match self.guests[place].life {
                Life::Boots(until) if until <= self.now => {
                    self.guests[place].life = Life::Up;
                    self.engine.update(lifecycle::connected(&self.guests[place].name), self.now);
                    any = true;
                }
                Life::Dead(until) if until <= self.now => {
                    self.start_again(place, boot);
                    any = true;
                }
                _ => {}
            }
        }
        any
    }

    fn start_again(&mut self, place: usize, boot: Duration) {
        let spec: &VmSpec = &self.site.vms[place];
        let guest = &mut self.guests[place];
        match lifecycle::start_again(&mut self.engine, spec, self.now) {
            Ok(holding) => {
                guest.started(&holding, self.now + boot, self.now, self.site);
                self.engine.update(Event::VmStarted { vm: spec.name.clone(), seen: guest.seen() }, self.now);
            }
            Err(_) => {
                // As soon as what it needs is free, before anyone else takes it.
                guest.life = Life::Dead(self.now + Duration::from_millis(20));
                if self.now >= guest.asks_again {
                    guest.asks_again = self.now + Duration::from_secs(1);
                    lifecycle::make_way(&mut self.engine, spec, self.now);
                }
            }
        }
    }

    /// Reports that are due. Whether there was any.
    fn report(&mut self) -> bool {
        let cadence = &self.options.cadence;
        let ticks = self.now >= self.next_tick;
        if ticks {
            self.next_tick = self.now + Duration::from_secs_f64(cadence.tick.max(0.05));
        }
        let (again, window) = (Duration::from_millis(cadence.again_ms), Duration::from_millis(cadence.window_ms));
        let mut any = ticks;
        for place in 0..self.guests.len() {
            if self.guests[place].life != Life::Up {
                continue;
            }
            let fires = self.guests[place].stalls() && self.fires(&self.presses[place]) <= self.now;
            let press = &mut self.presses[place];
            let asked = press.again.is_some_and(|(at, _)| at <= self.now);
            if fires {
                // One that is pressed all the time has been asked already.
                let anew = self.now > press.quiet_until + again;
                press.quiet_until = self.now + window;
                press.stalled = Duration::ZERO;
                press.again = (anew && cadence.times > 0).then(|| (self.now + again, cadence.times - 1));
            } else if let Some((_, left)) = press.again.filter(|_| asked) {
                press.again = (left > 0).then(|| (self.now + again, left - 1));
            }
            if ticks || fires || asked {
                self.observe(place);
                any = true;
            }
        }
        if ticks && !self.options.audit {
            self.audit();
        }
        any
    }

    fn observe(&mut self, place: usize) {
        let guest = &self.guests[place];
        let holding = self.engine.ledger().vm(&guest.name).clone();
        let sample = guest.sample(self.now, self.site);
        self.balancer.observe(&guest.name, sample, &holding, &self.site.layout);
        if self.site.has_memory {
            let free = guest.free(self.site);
            self.engine.update(Event::GuestMemory { vm: guest.name.clone(), free, age: Duration::ZERO }, self.now);
        }
    }

    fn decide(&mut self) {
        let facts = |vm: &VmName| {
            let weight = self.weights.get(vm).copied().unwrap_or(100);
            VmFacts { weight, homes: BTreeSet::new() }
        };
        let wall = WallTime::of_unix(self.now.as_secs());
        let decision = {
            let scene = scene_of(&self.engine, &self.site.layout, facts, wall);
            self.balancer.decide(&scene, self.now)
        };
        if decision.is_empty() {
            return;
        }
        let mut accepted = false;
        for request in decision.requests() {
            match self.engine.request(request, self.now) {
                Ok(_) => accepted = true,
                Err(_) => self.moves.refused += 1,
            }
        }
        self.balancer.begun(&decision, self.now);
        if accepted {
            self.pump();
        }
    }

    /// One turn of the daemon's loop.
    fn pump(&mut self) {
        for action in self.engine.next_actions(self.now) {
            if let Some(place) = self.places.get(&action.vm).copied()
                && self.guests[place].is_alive()
            {
                self.actuators.accept(action, place, &self.guests[place], self.site, self.now);
            }
        }
        for notice in self.engine.take_notices() {
            match notice {
                Notice::Ended(report) => self.ended(&report),
                Notice::Violated(violation) => self.breaks(violation.to_string()),
                _ => {}
            }
        }
        self.deadline = self.engine.next_deadline();
    }

    fn ended(&mut self, report: &Report) {
        let later = self.now > SETTLED;
        for leg in &report.legs {
            let cores = self.engine.host().count_cores(&leg.arrived.cpus) as u64;
            let mib = leg.arrived.total_memory().0 >> 20;
            self.moves.cores += cores;
            self.moves.mib += mib;
            if later {
                self.moves.cores_later += cores;
                self.moves.mib_later += mib;
            }
        }
        self.moves.transfers += 1;
        self.moves.short += u64::from(report.verdict != Verdict::Complete);
    }

    /// I1 to I5, against what is really in force.
    fn audit(&mut self) {
        let alive = self.site.vms.iter().zip(&self.guests).filter(|(_, guest)| guest.is_alive());
        let seen: Vec<(&VmSpec, VmSeen)> = alive.map(|(spec, guest)| (spec, guest.seen())).collect();
        let host = self.engine.host();
        let mut found = check_ledger(host, self.engine.ledger());
        found.extend(check_against_reality(host, self.engine.ledger(), seen.iter().map(|(spec, seen)| (*spec, seen))));
        found.extend(self.engine.check_deadlines(self.now));
        for violation in found {
            self.breaks(violation.to_string());
        }
    }

    fn breaks(&mut self, what: String) {
        if self.broken.len() < MOST_BROKEN && !self.broken.contains(&what) {
            self.broken.push(what);
        }
    }
}
