//! From what is known to a decision, from a decision to transfers, from transfers to what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_api::{DecidedMove, DecisionInfo, DecisionState, EventKind, Problem, TransferState};
use conuma_balancing::{Move, Report, Request, TransferId};
use conuma_policy::{Decision, Held, Mode};
use conuma_topology::{Bytes, VmName};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::newcomers::into_pool;
use super::record::{NumberSlot, known, number_of};
use super::{Cause, Lacks, Late, Manager, Snapshot};
use crate::clock::unix_ms;
use crate::core::Stopped;
use crate::wire;
use crate::wire::decision;

/// How long an answer waits for the number of a decision.
const NUMBER: Duration = Duration::from_secs(2);

/// What a decision has brought is told so long after its last transfer ended.
const SHOWS: Duration = Duration::from_secs(1);

/// A decision that is being carried out.
pub(super) struct UnderWay {
    number: NumberSlot,
    info: DecisionInfo,
    /// Those of its transfers of which the end is not known.
    awaited: Vec<TransferId>,
    /// How much of it arrived.
    arrived: Arrived,
    /// When the last of them ended.
    ended: Option<Duration>,
}

/// How much arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Arrived {
    /// All of a transfer, or a part of one.
    some: bool,
    /// Not all of a transfer, or one that was not begun.
    short: bool,
}

impl UnderWay {
    /// Transfers of which the end is not known.
    pub(super) fn awaited(&self) -> impl Iterator<Item = TransferId> + '_ {
        self.awaited.iter().copied()
    }

    /// A transfer ended, as the engine reports.
    fn ended(&mut self, report: &Report, now: Duration) {
        let transfer = wire::transfer(report, now);
        self.awaited.retain(|id| *id != report.id);
        match transfer.state {
            TransferState::Complete => self.arrived.some = true,
            TransferState::Partial => self.arrived = Arrived { some: true, short: true },
            _ => self.arrived.short = true,
        }
        let of_it = |step: &&mut DecidedMove| step.transfer == Some(transfer.id);
        for step in self.info.moves.iter_mut().filter(of_it) {
            step.state = Some(transfer.state);
            step.refusal = transfer.refusal.clone();
        }
        self.ended = self.awaited.is_empty().then_some(now);
    }

    fn state(&self) -> DecisionState {
        match self.arrived {
            Arrived { some: true, short: false } => DecisionState::Done,
            Arrived { some: true, short: true } => DecisionState::Partial,
            Arrived { some: false, .. } => DecisionState::Refused,
        }
    }
}

/// Memory of a guarantee may take so many times longer than cores: another guest has to make room first.
const MAKING_ROOM: u32 = 10;

impl Manager {
    /// Looks at how all is, decides, and does what the mode says with that.
    pub(super) async fn round(&mut self, cause: Cause) -> Result<(), Stopped> {
        let snapshot = self.look().await?;
        self.learn(&snapshot);
        self.end_pins(snapshot.now);
        if self.mode() == Mode::Off && self.under_way.is_empty() {
            self.settle_newcomers(&snapshot);
            return Ok(());
        }
        let cause = if self.windows_changed(&snapshot) && cause == Cause::Tick { Cause::Window } else { cause };
        let decision = self.decide(&snapshot);
        self.follow(&snapshot, decision.score_now);
        match self.mode() {
            Mode::Off => {}
            Mode::Advise => self.advise(&decision, cause),
            Mode::Auto if self.waits_for_strangers(&decision) => {}
            Mode::Auto => {
                self.watch_guarantees(&decision, &snapshot);
                self.carry_out(&decision, cause).await?;
            }
        }
        self.settle_newcomers(&snapshot);
        self.last = Some(decision);
        Ok(())
    }

    /// Whether something is still to be heard of a VM that ran before this daemon.
    fn waits_for_strangers(&mut self, decision: &Decision) -> bool {
        let (strangers, until) = &mut self.strangers;
        let unknown = |vm: &VmName| decision.of(vm).is_some_and(|outlook| outlook.held == Some(Held::Unknown));
        strangers.retain(|vm| Instant::now() < *until && unknown(vm));
        !strangers.is_empty()
    }

    /// What would be decided now.
    pub(super) async fn preview(&mut self) -> Result<DecisionInfo, Problem> {
        let snapshot = self.look().await.map_err(stopping)?;
        self.learn(&snapshot);
        Ok(decision::decision(&self.decide(&snapshot), Cause::Preview.name(), self.api_mode(), &self.layout))
    }

    /// Decides and carries that out once; answers as soon as its transfers have begun.
    pub(super) async fn rebalance(&mut self, reply: oneshot::Sender<Result<DecisionInfo, Problem>>) {
        match self.rebalance_now().await {
            Err(stopped) => drop(reply.send(Err(stopping(stopped)))),
            Ok((info, None)) => drop(reply.send(Ok(info))),
            // The history gives the number in its own time.
            Ok((info, Some(number))) => drop(tokio::spawn(async move {
                let id = tokio::time::timeout(NUMBER, number_of(number)).await.ok().flatten();
                let _ = reply.send(Ok(DecisionInfo { id, ..info }));
            })),
        }
    }

    async fn rebalance_now(&mut self) -> Result<(DecisionInfo, Option<NumberSlot>), Stopped> {
        let snapshot = self.look().await?;
        self.looked = Some(Instant::now());
        self.learn(&snapshot);
        let made = self.decide(&snapshot);
        self.follow(&snapshot, made.score_now);
        let begun = self.begin(&made, Cause::Manual).await?;
        let answer = match begun {
            Some((info, number)) => (info, Some(number)),
            None => {
                let info = decision::decision(&made, Cause::Manual.name(), self.api_mode(), &self.layout);
                (DecisionInfo { state: DecisionState::Done, ..info }, None)
            }
        };
        self.last = Some(made);
        Ok(answer)
    }

    /// Feeds what guests have said since.
    pub(super) fn learn(&mut self, snapshot: &Snapshot) {
        for (vm, sample) in self.sampler.collect(&self.room) {
            if let Some(held) = snapshot.held.get(&vm) {
                self.balancer.observe(&vm, sample, held, &self.layout);
            }
        }
    }

    pub(super) fn decide(&self, snapshot: &Snapshot) -> Decision {
        let began = Instant::now();
        let newcomers = self.newcomers();
        let mut scene = snapshot.scene(&self.host, &self.layout);
        for vm in &mut scene.vms {
            self.setbacks.apply(vm, snapshot.now);
        }
        scene.vms.extend(newcomers.iter().cloned());
        let decision = into_pool(self.balancer.decide(&scene, snapshot.now), &newcomers);
        tracing::debug!(moves = decision.moves.len(), took_us = wire::micros(began.elapsed()), "decided");
        decision
    }

    /// Keeps what would be done, once.
    fn advise(&mut self, made: &Decision, cause: Cause) {
        if made.is_empty() || self.idle.as_ref() == Some(&made.moves) {
            return;
        }
        self.idle = Some(made.moves.clone());
        let info = decision::decision(made, cause.name(), self.api_mode(), &self.layout);
        let info = DecisionInfo { state: DecisionState::Advised, ended_unix_ms: Some(info.at_unix_ms), ..info };
        tracing::info!(cause = cause.name(), "would move {}", info.summary);
        let number = self.history.append(&info);
        self.history.finish(number, &info);
    }

    async fn carry_out(&mut self, made: &Decision, cause: Cause) -> Result<(), Stopped> {
        self.begin(made, cause).await.map(drop)
    }

    /// Begins the transfers of a decision; `None` if there is nothing to begin, or nothing new to tell of it.
    async fn begin(&mut self, made: &Decision, cause: Cause) -> Result<Option<(DecisionInfo, NumberSlot)>, Stopped> {
        if made.is_empty() {
            self.idle = None;
            return Ok(None);
        }
        let mut info = decision::decision(made, cause.name(), self.api_mode(), &self.layout);
        info.state = DecisionState::UnderWay;
        let mut refused: Vec<Move> = Vec::new();
        let mut awaited = Vec::new();
        let mut arrived = Arrived::default();
        for request in made.requests() {
            let moves = moves_of(&request);
            let begun = self.room.core.request(request).await;
            match begun {
                Ok(id) => awaited.push(id),
                Err(_) => {
                    arrived.short = true;
                    self.setbacks.refused(&moves, made.at);
                    refused.extend(moves.iter().cloned());
                }
            }
            let of_it = info.moves.iter_mut().zip(&made.moves).filter(|(_, step)| moves.contains(&step.step));
            for (shown, _) in of_it {
                match &begun {
                    Ok(id) => (shown.transfer, shown.state) = (Some(id.0), Some(TransferState::Moving)),
                    Err(why) => {
                        shown.state = Some(TransferState::Refused);
                        shown.refusal = Some(wire::not_begun(why));
                    }
                }
            }
        }
        if !awaited.is_empty() {
            let begun = made.moves.iter().filter(|step| !refused.contains(&step.step)).cloned();
            self.balancer.begun(&Decision { moves: begun.collect(), ..made.clone() }, self.room.clock.now());
        }
        let refused_again = awaited.is_empty() && self.idle.as_ref() == Some(&made.moves);
        self.idle = awaited.is_empty().then(|| made.moves.clone());
        if refused_again && cause != Cause::Manual {
            return Ok(None);
        }
        tracing::info!(cause = cause.name(), refused = awaited.is_empty(), "decided: {}", info.summary);
        let number = self.history.append(&info);
        let vms: Vec<VmName> = made.vms.iter().map(|outlook| outlook.vm.clone()).collect();
        for vm in vms.into_iter().filter(|vm| concerns(made, vm)) {
            self.moved.insert(vm, number.clone());
        }
        let under_way = UnderWay { number: number.clone(), info: info.clone(), awaited, arrived, ended: None };
        match under_way.awaited.is_empty() {
            true => {
                info.state = DecisionState::Refused;
                self.end(under_way, None, made.at);
            }
            false => self.under_way.push(under_way),
        }
        Ok(Some((info, number)))
    }

    /// Learns which transfers have ended, and ends the decisions of which all have; `score` is how well the host does now.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, score: f64) {
        let reports: BTreeMap<TransferId, &Report> =
            snapshot.reports.iter().map(|report| (report.id, report)).collect();
        for under_way in &mut self.under_way {
            for id in under_way.awaited.clone() {
                match reports.get(&id) {
                    Some(report) if report.ended.is_some() => {
                        self.setbacks.learn(report, snapshot.now);
                        under_way.ended(report, snapshot.now);
                    }
                    Some(_) => {}
                    // So many others ended since that it was forgotten.
                    None => {
                        under_way.awaited.retain(|awaited| *awaited != id);
                        under_way.arrived.short = true;
                        under_way.ended = under_way.awaited.is_empty().then_some(snapshot.now);
                    }
                }
            }
        }
        let all = std::mem::take(&mut self.under_way);
        // What it has brought is seen when guests have worked with it for a while.
        let shown = |one: &UnderWay| one.ended.is_some_and(|at| snapshot.now >= at + SHOWS);
        let (ended, under_way): (Vec<_>, Vec<_>) = all.into_iter().partition(shown);
        self.under_way = under_way;
        for one in ended {
            self.end(one, Some(score).filter(|score| score.is_finite()), snapshot.now);
        }
    }

    fn end(&self, one: UnderWay, score: Option<f64>, now: Duration) {
        let state = one.state();
        let info = DecisionInfo { state, score_achieved: score, ended_unix_ms: Some(unix_ms(now)), ..one.info };
        tracing::debug!(id = known(&one.number), state = state.name(), "decision ended");
        self.history.finish(one.number, &info);
    }

    /// Tells of VMs that need their guarantee and have waited too long for it.
    fn watch_guarantees(&mut self, made: &Decision, snapshot: &Snapshot) {
        let mut late = std::mem::take(&mut self.late);
        let deadline = self.room.settings.recall_deadline;
        for outlook in &made.vms {
            let held = snapshot.held.get(&outlook.vm).map_or(0, |held| self.layout.cores_in(&held.cpus).len());
            let cores = outlook.needed_cores.saturating_sub(held);
            if matches!(outlook.held, Some(Held::Pinned | Held::HandsOff | Held::Unknown)) {
                continue;
            }
            let lacks = [
                (Lacks::Cores, cores, Bytes::ZERO, deadline),
                (Lacks::Memory, 0, outlook.lacks_memory, deadline * MAKING_ROOM),
            ];
            for (what, cores, memory, deadline) in lacks {
                if cores == 0 && memory.is_zero() {
                    continue;
                }
                let key = (outlook.vm.clone(), what);
                let mut waits = late.remove(&key).unwrap_or(Late { since: snapshot.now, told: false });
                let waited = snapshot.now.saturating_sub(waits.since);
                if waited >= deadline && !waits.told {
                    waits.told = true;
                    tracing::warn!(vm = %outlook.vm, cores, %memory, ?waited, "it still lacks what it is guaranteed");
                    self.room.bus.tell(EventKind::GuaranteeLate {
                        vm: outlook.vm.clone(),
                        waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                        cores: wire::count(cores),
                        memory,
                    });
                }
                self.late.insert(key, waits);
            }
        }
    }

    /// Whether other windows are open than when it was asked last.
    fn windows_changed(&mut self, snapshot: &Snapshot) -> bool {
        let rules = self.balancer.rules();
        let local = snapshot.wall.local(rules.utc_offset);
        let open = rules.vms.iter().flat_map(|(vm, rules)| {
            let open = rules.windows.iter().enumerate().filter(|(_, (window, _))| window.contains(local));
            open.map(|(index, _)| (vm.clone(), index))
        });
        let open: BTreeSet<(VmName, usize)> = open.collect();
        std::mem::replace(&mut self.windows, open) != self.windows
    }
}

/// What a request moves.
fn moves_of(request: &Request) -> Vec<Move> {
    match request {
        Request::Rebalance { moves, .. } => moves.clone(),
        _ => Vec::new(),
    }
}

fn concerns(made: &Decision, vm: &VmName) -> bool {
    made.moves.iter().any(|step| [&step.step.from, &step.step.to].into_iter().any(|holder| holder.vm() == Some(vm)))
}

fn stopping(stopped: Stopped) -> Problem {
    wire::not_begun(&stopped.into())
}
