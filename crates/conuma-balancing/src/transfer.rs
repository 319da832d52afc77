//! A transfer under way: a plan, its legs, and what is known of each so far.

use std::collections::BTreeSet;
use std::time::Duration;

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

use crate::action::{ActionId, Failure, Outcome};
use crate::duty::Knob;
use crate::elsewhere::rounds;
use crate::engine::Engine;
use crate::holding::{MemoryDemand, Resources};
use crate::ledger::{Holder, TransferId};
use crate::leg;
use crate::loans::{Loan, Remember};
use crate::plan::{Move, Request, Withheld};
use crate::report::{LegReport, Notice, Reason, Remark, Report, Shortfall, Stage, StageTime, Verdict};

/// A transfer, waiting or under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) report: Report,
    /// One for each move, in the order of the plan, then those that were withheld, then those of further rounds.
    pub(crate) legs: Vec<Leg>,
    /// When it ends at the latest, by the deadlines of its stages and of those it waits for.
    pub(crate) due: Duration,
    /// How often what fell short may still be looked for on other nodes.
    #[serde(default)]
    pub(crate) rounds_left: u32,
}

/// One move under way: cores, or memory of one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Leg {
    pub(crate) from: Holder,
    pub(crate) to: Holder,
    /// Who gets what was taken: the recipient, or, should that end, the giver, or else the pool.
    pub(crate) heir: Holder,
    /// What is still to be taken, and from then on what is to be given.
    pub(crate) load: Resources,
    /// The load has left the giver's account.
    pub(crate) taken: bool,
    pub(crate) stage: Stage,
    /// When the stage ends at the latest.
    pub(crate) until: Duration,
    /// The giver's agent was asked to make room on the node.
    pub(crate) room_asked: bool,
    /// The donor's guest cannot do without all of it.
    pub(crate) needed: bool,
    /// Why QEMU did not do what it was told, if it said.
    pub(crate) refusal: Option<Failure>,
    /// An action of this leg that is out.
    pub(crate) asked: Option<ActionId>,
    /// What came of it.
    pub(crate) answer: Option<Outcome>,
    pub(crate) terms: Terms,
    pub(crate) report: LegReport,
}

/// What a request's kind means for its legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// What arrives is remembered as a loan.
    pub(crate) loan: bool,
    /// It is owed: a guest's refusal does not keep it.
    pub(crate) owed: bool,
}

/// What a leg's step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for an answer or a deadline.
    Waits,
    /// It went on: look again.
    Went,
}

/// A VM's knobs that a transfer must have to itself.
pub(crate) type Knobs = BTreeSet<(VmName, Knob)>;

impl Transfer {
    pub(crate) fn waiting(id: TransferId, request: Request, now: Duration, due: Duration) -> Self {
        let report =
            Report { id, request, plan: None, legs: Vec::new(), asked: now, ended: None, verdict: Verdict::Waiting };
        Self { rounds_left: rounds(&report.request) - 1, report, legs: Vec::new(), due }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.report.verdict == Verdict::Waiting
    }

    /// The knobs that its legs turn.
    pub(crate) fn knobs(&self) -> Knobs {
        self.legs.iter().filter(|leg| leg.stage != Stage::Done).flat_map(Leg::knobs).collect()
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            loan: matches!(self.report.request, Request::Lend { .. }),
            owed: matches!(self.report.request, Request::Recall { .. } | Request::Rebalance { owed: true, .. }),
        }
    }

    /// Its report as of now.
    pub(crate) fn snapshot(&self) -> Report {
        let legs = self.legs.iter().map(|leg| leg.report.clone()).collect();
        Report { legs, ..self.report.clone() }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let short = self.legs.iter().any(|leg| !leg.report.shortfalls.is_empty());
        let arrived = self.legs.iter().any(|leg| !leg.report.arrived.is_empty());
        match (short, arrived) {
            (false, _) => Verdict::Complete,
            (true, true) => Verdict::Partial,
            (true, false) => Verdict::Nothing,
        }
    }
}

impl Leg {
    pub(crate) fn new(planned: &Move, terms: Terms) -> Self {
        let report = LegReport {
            planned: planned.clone(),
            arrived: Resources::default(),
            shortfalls: Vec::new(),
            remarks: Vec::new(),
            stages: Vec::new(),
        };
        Self {
            from: planned.from.clone(),
            to: planned.to.clone(),
            heir: planned.to.clone(),
            load: planned.what.clone(),
            taken: false,
            stage: Stage::Done,
            until: Duration::MAX,
            room_asked: false,
            needed: false,
            refusal: None,
            asked: None,
            answer: None,
            terms,
            report,
        }
    }

    /// One that is over before it began.
    pub(crate) fn withheld(of: &Withheld, terms: Terms) -> Self {
        let mut leg = Self::new(&of.step, terms);
        leg.report.shortfalls.push(of.as_shortfall());
        leg
    }

    fn knobs(&self) -> Knobs {
        let planned = &self.report.planned;
        let vms = [&planned.from, &planned.to].into_iter().filter_map(Holder::vm);
        vms.flat_map(|vm| knobs_for(&planned.what).into_iter().map(|knob| (vm.clone(), knob)).collect::<Vec<_>>())
            .collect()
    }

    /// Whether `vm` still has what this leg should take.
    pub(crate) fn takes_from(&self, vm: &VmName) -> bool {
        !self.taken && self.stage != Stage::Done && self.from.vm() == Some(vm)
    }

    /// Enters a stage that lasts until `until` at the latest.
    pub(crate) fn enter(&mut self, stage: Stage, until: Duration, now: Duration) -> Step {
        self.close_stage(now);
        if stage != Stage::Done {
            self.report.stages.push(StageTime { stage, began: now, took: None });
        }
        self.stage = stage;
        self.until = until;
        self.asked = None;
        self.answer = None;
        Step::Went
    }

    fn close_stage(&mut self, now: Duration) {
        if let Some(last) = self.report.stages.last_mut().filter(|last| last.took.is_none()) {
            last.took = Some(now.saturating_sub(last.began));
        }
    }

    /// Ends, nothing more to come.
    pub(crate) fn end(&mut self, now: Duration) -> Step {
        self.enter(Stage::Done, Duration::MAX, now)
    }

    pub(crate) fn remark(&mut self, remark: Remark) {
        if !self.report.remarks.contains(&remark) {
            self.report.remarks.push(remark);
        }
    }

    /// `what` of what fell short is looked for elsewhere.
    pub(crate) fn made_good(&mut self, what: &Resources) {
        if what.is_empty() {
            return;
        }
        let mut rest = what.clone();
        for short in &mut self.report.shortfalls {
            let part = short.what.common(&rest);
            short.what = short.what.saturating_sub(&part);
            rest = rest.saturating_sub(&part);
        }
        self.report.shortfalls.retain(|short| !short.what.is_empty());
        let mut sum = what.clone();
        self.report.remarks.retain(|remark| match remark {
            Remark::Elsewhere(before) => {
                sum.add(before);
                false
            }
            _ => true,
        });
        self.remark(Remark::Elsewhere(sum));
    }

    /// `what` of the load does not arrive.
    pub(crate) fn falls_short(&mut self, what: Resources, why: Reason, now_with: &Holder) {
        if !what.is_empty() {
            self.load = self.load.saturating_sub(&what);
            self.report.shortfalls.push(Shortfall { what, why, now_with: now_with.clone() });
        }
    }

    /// `what` is now with the recipient, by the ledger.
    pub(crate) fn arrived(&mut self, what: &Resources, engine: &mut Engine) {
        self.report.arrived.add(what);
        let left = engine.can_part_with(&self.from);
        let remember = if self.terms.loan { Remember::Yes } else { Remember::No };
        engine.state.loans.moved(what, &self.from, &self.to, &left, remember);
    }

    /// `what` went back from the recipient, by the ledger.
    pub(crate) fn unarrived(&mut self, what: &Resources, engine: &mut Engine) {
        self.report.arrived = self.report.arrived.saturating_sub(what);
        let left = engine.can_part_with(&self.to);
        engine.state.loans.moved(what, &self.to, &self.from, &left, Remember::No);
    }

    /// Something this leg asked for was answered.
    pub(crate) fn answered(&mut self, id: ActionId, outcome: Outcome) {
        if self.asked == Some(id) {
            self.answer = Some(outcome);
        }
    }

    pub(crate) fn step(&mut self, id: TransferId, place: usize, engine: &mut Engine, now: Duration) -> Step {
        let before = self.stage;
        let step = if self.report.planned.what.cpus.is_empty() {
            leg::memory::step(self, id, place, engine, now)
        } else {
            leg::cores::step(self, id, engine, now)
        };
        if self.stage != before {
            engine.notices.push(Notice::Stage { transfer: id, leg: place, stage: self.stage });
        }
        step
    }
}

fn knobs_for(what: &Resources) -> Vec<Knob> {
    let cores = (!what.cpus.is_empty()).then_some(Knob::Gates);
    cores.into_iter().chain(what.memory.keys().map(|node| Knob::Memory(*node))).collect()
}

/// The knobs that a request might turn, before there is a plan. Wider rather than narrower: what it names
/// waits for its turn.
pub(crate) fn knobs_of_request(request: &Request, engine: &Engine) -> Knobs {
    let every_node: Vec<Knob> = engine.state.host.memory.keys().map(|node| Knob::Memory(*node)).collect();
    let of_demand = |what: &crate::holding::Demand| {
        let mut knobs: Vec<Knob> = what.cores.iter().map(|_| Knob::Gates).collect();
        match &what.memory {
            Some(MemoryDemand::Total(_)) => knobs.extend(&every_node),
            Some(MemoryDemand::PerNode(nodes)) => knobs.extend(nodes.keys().map(|node| Knob::Memory(*node))),
            None => {}
        }
        knobs
    };
    let pairs = |vm: &VmName, knobs: Vec<Knob>| knobs.into_iter().map(|knob| (vm.clone(), knob)).collect::<Knobs>();
    match request {
        Request::Lend { from, to, what, .. } => &pairs(from, of_demand(what)) | &pairs(to, of_demand(what)),
        Request::Set { vm, what, .. } => pairs(vm, of_demand(what)),
        Request::Rebalance { moves, .. } => moves
            .iter()
            .flat_map(|step| [(step.from.vm(), &step.what), (step.to.vm(), &step.what)])
            .flat_map(|(vm, what)| vm.into_iter().flat_map(|vm| pairs(vm, knobs_for(what))))
            .collect(),
        Request::Recall { to, from, what } => {
            let all = || every_node.iter().copied().chain([Knob::Gates]).collect();
            let owes =
                |loan: &&Loan| loan.lender == *to && from.as_ref().is_none_or(|from| loan.borrower.vm() == Some(from));
            let loans = engine.state.loans.all().iter().filter(owes);
            let borrowers = loans.filter_map(|loan| Some(pairs(loan.borrower.vm()?, knobs_for(&loan.what))));
            borrowers.fold(pairs(to, what.as_ref().map_or_else(all, of_demand)), |sum, knobs| &sum | &knobs)
        }
    }
}
