//! Moving memory of one node.
//!
//! | stage | waits for | if it does not come |
//! | --- | --- | --- |
//! | prepare | the donor's agent made room and told what its guest can do without, which is all that is taken; left out if it has no agent, or where it has just reported that enough is free | takes nothing; what it owes, all the same |
//! | shrink | QEMU's `size` is what was asked; where nothing comes the agent makes room after all | settle |
//! | settle | `requested-size` is back at what the donor kept | all it may still reach stays with the donor |
//! | *the ledger moves what came out of the donor's account* | | |
//! | grow | the recipient plugged; step by step, each booked to it before it is asked | return |
//! | return | `requested-size` is back at what the recipient plugged | all it may still reach stays with the recipient |
//! | confirm | the recipient's agent sees it online on the right node | a remark |
//!
//! Memory cannot be forced. A donor that neither answered its agent nor gave anything is marked silent:
//! its memory is left alone until it answers again. What the recipient did not take goes back to the
//! donor, or, if that ended, to the pool.
//!
//! Steps leave room for the memmap: 64 bytes per 4 KiB page that is added come out of memory that is
//! usable already, so a step is at most 32 times the free memory (it then eats half of that).

use std::time::Duration;

use conuma_topology::{Bytes, NodeId};

use crate::action::{ActionKind, Failure, Outcome};
use crate::control::{MemoryKnob, Vm};
use crate::engine::{Engine, Owner};
use crate::holding::Resources;
use crate::ledger::{Holder, TransferId};
use crate::report::{Notice, Reason, Remark, Stage};
use crate::timing::Timing;
use crate::transfer::{Leg, Step};

/// A step is at least one memory block of Linux on x86: less would not come online.
const LEAST_STEP: Bytes = Bytes::mib(128);

/// Taking memory leaves a guest free at least so much, and this part of all that it holds, unless its agent says otherwise.
const LEFT_FREE: Bytes = Bytes::mib(64);
const LEFT_PART: u64 = 64;

/// Free memory allows a step this many times as large.
const STEP_PER_FREE: u64 = 32;

/// The longest that moving memory can last.
pub(crate) fn longest(timing: &Timing) -> Duration {
    timing.prepare + timing.shrink + timing.grow + timing.confirm + timing.gate() * 2
}

/// Begins: nothing has been asked of anyone yet.
pub(crate) fn begin(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) {
    if leg.from == Holder::Pool {
        taken(leg, id, engine, now);
        return;
    }
    if let Some(why) = fixed(&leg.from, engine) {
        fall_short_untouched(leg, why, engine, now);
        return;
    }
    let (node, bytes) = part(leg);
    let (held, just_now) = (engine.state.ledger.held(&leg.from), now.saturating_sub(engine.timing.fresh));
    let room = donor(leg, engine).is_some_and(|vm| has_room(vm, node, bytes, held, just_now));
    let nobody_to_ask = donor(leg, engine).is_some_and(Vm::is_on_its_own);
    leg.room_asked = nobody_to_ask;
    if nobody_to_ask || room && donor(leg, engine).is_some_and(|vm| vm.agent) {
        ask_for_shrink(leg, engine, now);
    } else {
        leg.enter(Stage::Prepare, now + engine.timing.prepare, now);
        ask_for_room(bytes, leg, id, place, engine, now);
    }
}

/// Whether so much is free on the node, and the guest does not run out of memory without it, by what it has just reported.
fn has_room(vm: &Vm, node: NodeId, bytes: Bytes, held: &Resources, just_now: Duration) -> bool {
    let all: Bytes = vm.free.values().copied().sum();
    let enough = vm.free.get(&node).is_some_and(|free| *free >= bytes);
    vm.heard >= just_now && !vm.shuffled && enough && all >= bytes + vm.promised(node) + left_free(held)
}

fn ask_for_room(bytes: Bytes, leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) {
    let node = node(leg);
    leg.room_asked = true;
    match leg.from.vm().filter(|_| donor(leg, engine).is_some_and(|vm| vm.agent)) {
        Some(vm) => {
            let due = now + engine.timing.prepare;
            let kind = ActionKind::PrepareMemory { node, bytes };
            leg.asked = Some(engine.issue(vm, due, kind, Owner::Leg(id, place)));
        }
        None => leg.answer = Some(Outcome::Failed(Failure::Unreachable)),
    }
}

pub(crate) fn step(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
    match leg.stage {
        Stage::Prepare => prepare(leg, engine, now),
        Stage::Shrink => shrink(leg, id, place, engine, now),
        Stage::Settle => settle(leg, id, engine, now),
        Stage::Grow => grow(leg, id, place, engine, now),
        Stage::Return => hand_back(leg, id, place, engine, now),
        Stage::Confirm => confirm(leg, engine, now),
        _ => Step::Waits,
    }
}

/// Nothing was asked of QEMU yet.
fn fall_short_untouched(leg: &mut Leg, why: Reason, engine: &mut Engine, now: Duration) -> Step {
    let node = node(leg);
    if let Some(knob) = knob(&leg.from, node, engine) {
        knob.want(None, now);
    }
    let (load, donor) = (leg.load.clone(), leg.from.clone());
    leg.falls_short(load, why, &donor);
    leg.end(now)
}

fn prepare(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    if let Some(why) = fixed(&leg.from, engine) {
        return fall_short_untouched(leg, why, engine, now);
    }
    let answer = match leg.answer.take() {
        None if now < leg.until => return Step::Waits,
        None => Outcome::Failed(Failure::TimedOut),
        Some(answer) => answer,
    };
    let spare = note_prepared(leg, answer);
    ask_for_shrink(leg, engine, now);
    keep_what_is_needed(leg, spare, engine, now);
    Step::Went
}

/// What the guest can do without, as it told. One that did not answer can do without nothing: it may be silent because it is full. What
/// it owes is asked for all the same: a guarantee must not depend on whether a borrower's agent answers.
fn note_prepared(leg: &mut Leg, answer: Outcome) -> Option<Bytes> {
    match answer {
        Outcome::Prepared { enough, spare } => {
            if !enough {
                leg.remark(Remark::Unprepared);
            }
            return Some(spare);
        }
        Outcome::Failed(failure @ (Failure::TimedOut | Failure::Unreachable)) => {
            leg.remark(Remark::DonorSilent(failure));
            return (!leg.terms.owed).then_some(Bytes::ZERO);
        }
        _ => leg.remark(Remark::Unprepared),
    }
    None
}

/// What taking memory leaves a guest free that holds so much.
fn left_free(held: &Resources) -> Bytes {
    LEFT_FREE + Bytes(held.total_memory().0 / LEFT_PART)
}

/// Asks for no more than the guest can do without: its kernel would give it, and then kill what needs it.
fn keep_what_is_needed(leg: &mut Leg, spare: Option<Bytes>, engine: &mut Engine, now: Duration) {
    let node = node(leg);
    let block = donor(leg, engine).and_then(|vm| vm.spec.devices.get(&node)).map_or(Bytes::ZERO, |device| device.block);
    let promised = donor(leg, engine).map(|vm| vm.promised(node)).unwrap_or_default();
    let (Some(spare), Some(knob)) = (spare, knob(&leg.from, node, engine)) else { return };
    let (Some(goal), spare) = (knob.goal, spare.saturating_sub(promised)) else { return };
    let spare = if block.is_zero() { spare } else { spare.round_down(block) };
    let least = knob.seen.size.saturating_sub(spare);
    if goal < least {
        leg.needed = true;
        knob.want(Some(least), now);
    }
}

fn ask_for_shrink(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    let (node, bytes) = part(leg);
    let plugged = plugged_by_ledger(&leg.from, node, engine);
    if let Some(knob) = knob(&leg.from, node, engine) {
        knob.want(Some(plugged.saturating_sub(bytes)), now);
    }
    leg.enter(Stage::Shrink, now + engine.timing.shrink, now)
}

fn shrink(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
    let (node, _) = part(leg);
    let recipient_gone = leg.heir != leg.to;
    let fixed = fixed(&leg.from, engine).is_some();
    let restart = engine.timing.restart;
    let answer = leg.answer.take();
    let prepared = answer.is_some();
    if let Some(answer) = answer {
        let spare = note_prepared(leg, answer);
        keep_what_is_needed(leg, spare, engine, now);
    }
    let needed = leg.needed;
    let Some(knob) = knob(&leg.from, node, engine) else { return Step::Waits };
    if prepared {
        knob.ask_again(now);
    }
    let reached = knob.goal.is_some_and(|goal| knob.bound() <= goal);
    if reached && needed {
        leg.enter(Stage::Settle, now + engine.timing.gate(), now);
        return settle(leg, id, engine, now);
    }
    if reached {
        knob.want(None, now);
        return taken(leg, id, engine, now);
    }
    leg.refusal = refusal(knob);
    if now < leg.until && leg.refusal.is_none() && !fixed && !recipient_gone {
        if !leg.room_asked && now >= knob.changed + restart {
            let missing = knob.seen.size.saturating_sub(knob.asked);
            ask_for_room(missing, leg, id, place, engine, now);
        }
        return Step::Waits;
    }
    let kept = knob.seen.size;
    knob.want(Some(kept), now);
    leg.enter(Stage::Settle, now + engine.timing.gate(), now)
}

/// What the donor keeps is certain once QEMU has confirmed a `requested-size` of that.
fn settle(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    let (node, bytes) = part(leg);
    let plugged = plugged_by_ledger(&leg.from, node, engine);
    let fixed = fixed(&leg.from, engine);
    let Some(knob) = knob(&leg.from, node, engine) else { return Step::Waits };
    let certain = knob.certain && knob.goal == Some(knob.asked);
    if !certain && now < leg.until {
        return Step::Waits;
    }
    let came = plugged.saturating_sub(knob.bound()).min(bytes);
    let failed = knob.failed.clone().or(leg.refusal.take());
    knob.want(None, now);
    let kept = match leg.from.vm() {
        Some(vm) if leg.needed && left_unanswered(leg) => Reason::Unanswering(vm.clone()),
        _ if leg.needed => Reason::DonorStarves,
        _ => Reason::DonorKept,
    };
    let why = fixed.unwrap_or(failed.map_or(kept, Reason::HypervisorFailed));
    let donor = leg.from.clone();
    leg.falls_short(Resources::memory(node, bytes.saturating_sub(came)), why, &donor);
    if came.is_zero() {
        mark_if_silent(leg, engine);
        return leg.end(now);
    }
    taken(leg, id, engine, now)
}

fn left_unanswered(leg: &Leg) -> bool {
    leg.report.remarks.iter().any(|remark| matches!(remark, Remark::DonorSilent(_)))
}

fn mark_if_silent(leg: &Leg, engine: &mut Engine) {
    if let Some(name) = leg.from.vm().filter(|_| left_unanswered(leg))
        && let Some(vm) = engine.state.vms.get_mut(name)
        && !vm.silent
    {
        vm.silent = true;
        engine.notices.push(Notice::Silent { vm: name.clone() });
    }
}

/// Verified: the donor cannot touch it any more.
fn taken(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    engine.take(leg, id);
    let (node, bytes) = part(leg);
    if let Some(vm) = vm(&leg.from, engine) {
        vm.gave(node, bytes, leg.room_asked, now);
    }
    if leg.heir != leg.to {
        return pass_to_heir(leg, id, Resources::memory(node, bytes), Reason::RecipientGone, engine, now);
    }
    if leg.to == Holder::Pool {
        let load = leg.load.clone();
        engine.shift(&load, &Holder::Transit(id), &Holder::Pool);
        leg.arrived(&load, engine);
        return leg.end(now);
    }
    if let Some(vm) = vm(&leg.to, engine) {
        vm.takes(now);
    }
    leg.enter(Stage::Grow, now + engine.timing.grow, now);
    next_step(leg, id, engine, now)
}

/// Books the next step to the recipient; the duty then asks for it.
fn next_step(leg: &mut Leg, id: TransferId, engine: &mut Engine, now: Duration) -> Step {
    let (node, bytes) = part(leg);
    let given = leg.report.arrived.on(node);
    let Some(vm) = leg.to.vm().and_then(|vm| engine.state.vms.get(vm)) else { return Step::Waits };
    let began = began_to_grow(leg).unwrap_or(now);
    let step = step_size(vm, node, vm.gains(given, began), &engine.timing).min(bytes.saturating_sub(given));
    let step = Resources::memory(node, step);
    engine.shift(&step, &Holder::Transit(id), &leg.to);
    leg.arrived(&step, engine);
    if let Some(knob) = knob(&leg.to, node, engine) {
        knob.want(None, now);
    }
    Step::Went
}

fn step_size(vm: &Vm, node: NodeId, gained: Bytes, timing: &Timing) -> Bytes {
    let block = vm.spec.devices.get(&node).map(|device| device.block).filter(|block| !block.is_zero());
    let most = match vm.free.get(&node) {
        Some(free) => Bytes((*free + gained).0.saturating_mul(STEP_PER_FREE)).max(LEAST_STEP),
        None => timing.step,
    };
    block.map_or(most, |block| most.round_down(block).max(block))
}

fn grow(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
    let (node, bytes) = part(leg);
    if leg.heir != leg.to {
        // The recipient ended: what it had got went to the pool with it.
        let lost = leg.report.arrived.clone();
        leg.report.arrived = Resources::default();
        leg.falls_short(lost, Reason::RecipientGone, &Holder::Pool);
        let rest = leg.load.clone();
        return pass_to_heir(leg, id, rest, Reason::RecipientGone, engine, now);
    }
    let goal = plugged_by_ledger(&leg.to, node, engine);
    let fixed = fixed(&leg.to, engine).is_some();
    let Some(knob) = knob(&leg.to, node, engine) else { return Step::Waits };
    let reached = knob.certain && knob.asked == goal && knob.seen.size >= goal;
    if reached && leg.report.arrived.on(node) < bytes {
        return next_step(leg, id, engine, now);
    }
    if reached {
        return ask_to_confirm(leg, id, place, engine, now);
    }
    leg.refusal = refusal(knob);
    if now < leg.until && leg.refusal.is_none() && !fixed {
        return Step::Waits;
    }
    let has = knob.seen.size;
    knob.want(Some(has), now);
    leg.enter(Stage::Return, now + engine.timing.gate(), now)
}

/// What the recipient did not plug is certain once QEMU has confirmed a `requested-size` without it.
fn hand_back(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
    if leg.heir != leg.to {
        return grow(leg, id, place, engine, now);
    }
    let (node, bytes) = part(leg);
    let booked = plugged_by_ledger(&leg.to, node, engine);
    let fixed = fixed(&leg.to, engine);
    let Some(knob) = knob(&leg.to, node, engine) else { return Step::Waits };
    let certain = knob.certain && knob.goal == Some(knob.asked);
    if !certain && now < leg.until {
        return Step::Waits;
    }
    let back = booked.saturating_sub(knob.bound()).min(leg.report.arrived.on(node));
    let failed = knob.failed.clone().or(leg.refusal.take());
    knob.want(None, now);
    let why = fixed.unwrap_or(failed.map_or(Reason::RecipientDidNotTake, Reason::HypervisorFailed));
    let back = Resources::memory(node, back);
    engine.shift(&back, &leg.to, &Holder::Transit(id));
    leg.unarrived(&back, engine);
    let rest = Resources::memory(node, bytes.saturating_sub(leg.report.arrived.on(node)));
    leg.heir = engine.heir_without_recipient(leg);
    let kept = leg.report.arrived.clone();
    let step = pass_to_heir(leg, id, rest, why, engine, now);
    if kept.is_empty() { step } else { ask_to_confirm(leg, id, place, engine, now) }
}

/// What did not find its recipient goes to the heir; the duty raises its `requested-size` again.
fn pass_to_heir(
    leg: &mut Leg,
    id: TransferId,
    rest: Resources,
    why: Reason,
    engine: &mut Engine,
    now: Duration,
) -> Step {
    engine.shift(&rest, &Holder::Transit(id), &leg.heir);
    let heir = leg.heir.clone();
    leg.falls_short(rest, why, &heir);
    leg.end(now)
}

fn ask_to_confirm(leg: &mut Leg, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
    let node = node(leg);
    if leg.to.vm().and_then(|vm| engine.state.vms.get(vm)).is_some_and(Vm::is_on_its_own) {
        return leg.end(now);
    }
    let plugged = plugged_by_ledger(&leg.to, node, engine);
    leg.enter(Stage::Confirm, now + engine.timing.confirm, now);
    match leg.to.vm().filter(|vm| engine.state.vms.get(*vm).is_some_and(|vm| vm.agent)) {
        Some(vm) => {
            let kind = ActionKind::ConfirmMemory { node, plugged };
            leg.asked = Some(engine.issue(vm, leg.until, kind, Owner::Leg(id, place)));
        }
        None => leg.answer = Some(Outcome::Failed(Failure::Unreachable)),
    }
    Step::Went
}

fn confirm(leg: &mut Leg, engine: &mut Engine, now: Duration) -> Step {
    match leg.answer.take() {
        None if now < leg.until => return Step::Waits,
        Some(Outcome::Confirmed { satisfied: true }) => {
            let (node, given) = (node(leg), leg.report.arrived.on(node(leg)));
            if let (Some(vm), Some(began)) = (vm(&leg.to, engine), began_to_grow(leg)) {
                vm.took(node, given, began);
            }
        }
        _ => leg.remark(Remark::Unconfirmed),
    }
    leg.end(now)
}

fn began_to_grow(leg: &Leg) -> Option<Duration> {
    leg.report.stages.iter().find(|stage| stage.stage == Stage::Grow).map(|stage| stage.began)
}

/// Why memory of this holder neither comes nor goes now, whatever a guest would do.
fn fixed(holder: &Holder, engine: &Engine) -> Option<Reason> {
    let name = holder.vm()?;
    Some(Reason::Fixed(name.clone(), engine.state.vms.get(name)?.fixed?))
}

/// That QEMU said no, which does not change by waiting, and what it said.
fn refusal(knob: &MemoryKnob) -> Option<Failure> {
    knob.failed.clone().filter(|failure| matches!(failure, Failure::Refused(_) | Failure::Failed(_)))
}

fn node(leg: &Leg) -> NodeId {
    *leg.report.planned.what.memory.keys().next().expect("a memory leg is about one node")
}

/// The node, and how much is to be taken or given.
fn part(leg: &Leg) -> (NodeId, Bytes) {
    let node = node(leg);
    (node, leg.load.on(node))
}

fn donor<'a>(leg: &Leg, engine: &'a Engine) -> Option<&'a Vm> {
    engine.state.vms.get(leg.from.vm()?)
}

fn knob<'a>(holder: &Holder, node: NodeId, engine: &'a mut Engine) -> Option<&'a mut MemoryKnob> {
    vm(holder, engine)?.memory.get_mut(&node)
}

fn vm<'a>(holder: &Holder, engine: &'a mut Engine) -> Option<&'a mut Vm> {
    engine.state.vms.get_mut(holder.vm()?)
}

/// What the ledger lets the VM plug on the node.
fn plugged_by_ledger(holder: &Holder, node: NodeId, engine: &Engine) -> Bytes {
    let boot = holder.vm().and_then(|vm| engine.state.vms.get(vm)).map(|vm| vm.boot(node)).unwrap_or_default();
    engine.state.ledger.held(holder).on(node).saturating_sub(boot)
}
