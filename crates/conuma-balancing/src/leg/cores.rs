//! Moving cores.
//!
//! | stage | waits for | if it does not come |
//! | --- | --- | --- |
//! | quiesce | the donor's agent has left the CPUs; left out if it has none | refused: stays with the donor, unless it is owed; silent: firm gate, sooner if it is owed |
//! | close | gates confirmed shut, and run times stand still behind them | firm gate |
//! | force | firm gates confirmed shut | stays with the donor, gates open again |
//! | *the ledger moves it out of the donor's account, then into the recipient's* | | |
//! | open | gates confirmed open | the duty goes on trying; it is the recipient's already |
//! | enable | the recipient's agent, told while gates open, uses them | told when its agent connects |
//!
//! A core that was taken always arrives somewhere: with the recipient, or, if that ended meanwhile, with
//! the donor again, or else in the pool.

use std::time::Duration;

use conuma_topology::CpuSet;

use crate::action::{Failure, Grip, RefusedCpus};
use crate::control::{CoreKnob, Vm};
use crate::engine::Engine;
use crate::holding::Resources;
use crate::ledger::{Holder, TransferId};
use crate::report::{Reason, Remark, Stage};
use crate::timing::Timing;
use crate::transfer::{Leg, Step};

/// The longest that moving cores can last.
pub(crate) fn longest(timing: &Timing) -> Duration {
    timing.agent * 2 + timing.verify + force_within(timing) + timing.gate()
}

/// The last soft gate may be asked for when the time for that ends: its answer comes first.
fn force_within(timing: &Timing) -> Duration {
    timing.idle_window + timing.host + timing.gate()
}

/// Begins: nothing has been asked of anyone yet.
pub(crate) fn begin(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) {
    if leg.from == Holder::Pool {
        give(leg, id, engine, now);
        return;
    }
    let cpus = leg.load.cpus.clone();
    if let Some(knob) = donor(leg, engine) {
        knob.leave(&cpus);
    }
    if is_on_its_own(&leg.from, engine) {
        shut(leg, engine, Grip::Firm, now);
        return;
    }
    let until = now + patience(leg, engine.timing.agent, &engine.timing);
    leg.enter(Stage::Quiesce, until, now);
}

/// How long the donor may take for what it may take `usual` for.
fn patience(leg: &Leg, usual: Duration, timing: &Timing) -> Duration {
    if leg.terms.owed { usual.min(timing.recall) } else { usual }
}

pub(crate) fn step(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    match leg.stage {
        Stage::Quiesce => quiesce(leg, engine, now),
        Stage::Close => close(leg, id, engine, now),
        Stage::Force => force(leg, id, engine, now),
        Stage::Open => open(leg, engine, now),
        Stage::Enable => enable(leg, engine, now),
        _ => Step::Waits,
    }
}

/// What the donor's guest made of the request to leave.
enum Left {
    NotKnown,
    Yes { refused: Vec<RefusedCpus> },
    No(String),
}

fn quiesce(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    let cpus = leg.load.cpus.clone();
    let Some(knob) = donor(leg, engine) else { return Step::Waits };
    let silence = knob.untold.clone();
    match left(knob, &cpus) {
        Left::Yes { refused } => {
            for refusal in refused {
                refuse(leg, engine, &refusal.cpus, refusal.why);
            }
        }
        Left::No(why) => refuse(leg, engine, &cpus, why),
        Left::NotKnown if now >= leg.until => {
            leg.remark(Remark::DonorSilent(silence.unwrap_or(Failure::TimedOut)));
            return shut(leg, engine, Grip::Firm, now);
        }
        Left::NotKnown => return Step::Waits,
    }
    if leg.load.is_empty() {
        return leg.end(now);
    }
    let forced = leg.report.remarks.iter().any(|remark| matches!(remark, Remark::DonorRefused(_)));
    shut(leg, engine, if forced { Grip::Firm } else { Grip::Soft }, now)
}

fn left(knob: &CoreKnob, cpus: &CpuSet) -> Left {
    match (&knob.told, &knob.untold) {
        (Some(told), _) if told.cpus.is_disjoint(cpus) => {
            let concerns = |refusal: &&RefusedCpus| !refusal.cpus.is_disjoint(cpus);
            Left::Yes { refused: told.refused.iter().filter(concerns).cloned().collect() }
        }
        (_, Some(Failure::Refused(why) | Failure::Failed(why))) => Left::No(why.clone()),
        _ => Left::NotKnown,
    }
}

/// The guest does not leave `cpus`. A core of which one sibling stays, stays whole.
fn refuse(leg: &mut Leg, engine: &mut Engine, cpus: &CpuSet, why: String) {
    if leg.terms.owed {
        leg.remark(Remark::DonorRefused(why));
        return;
    }
    let leaving = engine.state.host.whole_part(&leg.load.cpus.difference(cpus));
    let stays = leg.load.cpus.difference(&leaving);
    if let Some(knob) = donor(leg, engine) {
        knob.release(&stays);
    }
    let donor = leg.from.clone();
    leg.falls_short(Resources::cores(stays), Reason::DonorRefused(why), &donor);
}

fn shut(leg: &mut Leg, engine: &mut Engine, grip: Grip, now: Duration) -> Step {
    let cpus = leg.load.cpus.clone();
    if let Some(knob) = donor(leg, engine) {
        knob.close(&cpus, grip);
    }
    match grip {
        Grip::Soft => {
            let until = now + patience(leg, engine.timing.verify, &engine.timing);
            leg.enter(Stage::Close, until, now)
        }
        Grip::Firm | Grip::Stopped => leg.enter(Stage::Force, now + force_within(&engine.timing), now),
    }
}

fn close(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    let Some(knob) = donor(leg, engine) else { return Step::Waits };
    let runs_on = knob.maybe_open.intersection(&leg.load.cpus);
    if runs_on.is_empty() {
        return taken(leg, id, engine, now);
    }
    if now < leg.until {
        return Step::Waits;
    }
    leg.remark(Remark::DonorBusy(runs_on));
    shut(leg, engine, Grip::Firm, now)
}

fn force(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    let cpus = leg.load.cpus.clone();
    let Some(knob) = donor(leg, engine) else { return Step::Waits };
    if knob.maybe_open.is_disjoint(&cpus) {
        return taken(leg, id, engine, now);
    }
    if now < leg.until {
        return Step::Waits;
    }
    knob.release(&cpus);
    let donor = leg.from.clone();
    leg.falls_short(Resources::cores(cpus), Reason::GateFailed(Failure::TimedOut), &donor);
    leg.end(now)
}

/// Verified: from here on the donor cannot run there.
fn taken(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    engine.take(leg, id);
    let cpus = leg.load.cpus.clone();
    if let Some(knob) = donor(leg, engine) {
        knob.release(&cpus);
    }
    give(leg, id, engine, now)
}

/// The load is out of the giver's hands; the heir's account gets it before its gates open.
fn give(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    if !leg.taken {
        engine.take(leg, id);
    }
    let load = leg.load.clone();
    engine.shift(&load, &Holder::Transit(id), &leg.heir);
    if leg.heir != leg.to {
        let heir = leg.heir.clone();
        leg.falls_short(load, Reason::RecipientGone, &heir);
        return leg.end(now);
    }
    leg.arrived(&load, engine);
    match recipient(leg, engine) {
        None => leg.end(now),
        Some(knob) => {
            knob.release(&load.cpus);
            leg.enter(Stage::Open, now + engine.timing.gate(), now)
        }
    }
}

fn open(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    let cpus = leg.load.cpus.clone();
    let Some(knob) = recipient(leg, engine) else { return leg.end(now) };
    if cpus.is_subset(&knob.surely_open) {
        return match is_on_its_own(&leg.to, engine) {
            true => leg.end(now),
            false => leg.enter(Stage::Enable, now + engine.timing.agent, now),
        };
    }
    if now < leg.until {
        return Step::Waits;
    }
    leg.remark(Remark::GateNotOpen);
    leg.end(now)
}

fn enable(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    let cpus = leg.load.cpus.clone();
    let connected = leg.to.vm().and_then(|vm| engine.state.vms.get(vm)).is_some_and(|vm| vm.agent);
    let Some(knob) = recipient(leg, engine) else { return leg.end(now) };
    match knob.told.clone().filter(|told| cpus.is_subset(&told.cpus)) {
        Some(told) => {
            for refusal in told.refused.iter().filter(|refusal| !refusal.cpus.is_disjoint(&cpus)) {
                leg.remark(Remark::RecipientRefused(refusal.cpus.intersection(&cpus), refusal.why.clone()));
            }
            leg.end(now)
        }
        None if connected && now < leg.until => Step::Waits,
        None => {
            leg.remark(Remark::RecipientUntold);
            leg.end(now)
        }
    }
}

/// There is nobody to ask or to tell.
fn is_on_its_own(holder: &Holder, engine: &Engine) -> bool {
    holder.vm().and_then(|vm| engine.state.vms.get(vm)).is_some_and(Vm::is_on_its_own)
}

fn donor<'a>(leg: &Leg, engine: &'a mut Engine) -> Option<&'a mut CoreKnob> {
    Some(&mut engine.state.vms.get_mut(leg.from.vm()?)?.cores)
}

fn recipient<'a>(leg: &Leg, engine: &'a mut Engine) -> Option<&'a mut CoreKnob> {
    Some(&mut engine.state.vms.get_mut(leg.to.vm()?)?.cores)
}
