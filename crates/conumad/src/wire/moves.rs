//! Requests, plans, transfers, refusals.

use std::time::Duration;

use conuma_api as api;
use conuma_api::{Code, Problem};
use conuma_balancing::{
    CoreChoice, CoreReason, Engine, Failure, LegReport, Move, Notice, Reason, Refusal, Remark, Report, Request,
    Resources, Shortfall, Stage, TransferPlan, Verdict, Withheld,
};
use serde::Serialize;

use super::amounts::{engine_demand, engine_holder};
use super::{count, demand, holder, micros, resources, violation};
use crate::clock::unix_ms;
use crate::core::NotBegun;

/// The name of a kind, as it is written.
pub(super) fn kind_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(kind)) => kind,
        Ok(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

pub(crate) fn refusal(of: &Refusal) -> Problem {
    let code = match of {
        Refusal::UnknownVm(_) => Code::NotFound,
        Refusal::AlreadyStarted(_) => Code::Exists,
        Refusal::SameVm(_)
        | Refusal::NotWholeCores { .. }
        | Refusal::NoSuchNode(_)
        | Refusal::NotBetween { .. }
        | Refusal::TornMemory { .. }
        | Refusal::SeveralBorrowers { .. } => Code::BadRequest,
        Refusal::Unsound(_) => Code::Internal,
        _ => Code::Refused,
    };
    let problem = Problem::new(code, of.to_string());
    match of {
        Refusal::NotHeld { .. } | Refusal::TooFewCores { .. } | Refusal::TooLittleMemory { .. } => {
            problem.with_hint("`conuma show` tells who holds what")
        }
        Refusal::NotLent { .. } => problem.with_hint("`conuma show` tells the loans"),
        Refusal::SeveralBorrowers { .. } => problem.with_hint("say with --from which should give"),
        Refusal::BelowGuarantee { .. } => problem.with_hint("it gets it back with `conuma recall` at any time"),
        _ => problem,
    }
}

/// Why nothing was begun, in the words of the API.
pub(crate) fn not_begun(of: &NotBegun) -> Problem {
    match of {
        NotBegun::Refused(why) => refusal(why),
        NotBegun::Journal(_) => Problem::new(Code::Internal, of.to_string())
            .with_hint("make room on the disk of the daemon's state directory; what VMs hold is safe meanwhile"),
        NotBegun::Stopped(_) => Problem::new(Code::Stopping, of.to_string()),
    }
}

/// What the engine is asked for.
pub(crate) fn engine_request(of: api::TransferRequest) -> Request {
    match of {
        api::TransferRequest::Lend { from, to, what, below_guarantee } => {
            Request::Lend { from, to, what: engine_demand(what), below_guarantee }
        }
        api::TransferRequest::Set { vm, what, below_guarantee } => {
            Request::Set { vm, what: engine_demand(what), below_guarantee }
        }
        api::TransferRequest::Recall { to, from, what } => Request::Recall { to, from, what: what.map(engine_demand) },
        api::TransferRequest::Rebalance { moves, below, owed } => {
            Request::Rebalance { moves: moves.into_iter().map(engine_move).collect(), below, owed }
        }
    }
}

fn api_request(of: &Request) -> api::TransferRequest {
    match of {
        Request::Lend { from, to, what, below_guarantee } => api::TransferRequest::Lend {
            from: from.clone(),
            to: to.clone(),
            what: demand(what),
            below_guarantee: *below_guarantee,
        },
        Request::Recall { to, from, what } => {
            api::TransferRequest::Recall { to: to.clone(), from: from.clone(), what: what.as_ref().map(demand) }
        }
        Request::Set { vm, what, below_guarantee } => {
            api::TransferRequest::Set { vm: vm.clone(), what: demand(what), below_guarantee: *below_guarantee }
        }
        Request::Rebalance { moves, below, owed } => {
            let moves = moves.iter().map(api_move).collect();
            api::TransferRequest::Rebalance { moves, below: below.clone(), owed: *owed }
        }
    }
}

pub(crate) fn plan(of: &TransferPlan) -> api::Plan {
    let withheld = |of: &Withheld| shortfall(&of.as_shortfall());
    api::Plan {
        moves: of.moves.iter().map(api_move).collect(),
        choices: of.choices.iter().map(choice).collect(),
        withheld: of.withheld.iter().map(withheld).collect(),
    }
}

fn api_move(of: &Move) -> api::Move {
    api::Move { from: holder(&of.from), to: holder(&of.to), what: resources(&of.what) }
}

fn engine_move(of: api::Move) -> Move {
    let what = Resources { cpus: of.what.cpus, memory: of.what.memory };
    Move { from: engine_holder(of.from), to: engine_holder(of.to), what }
}

fn choice(of: &CoreChoice) -> api::CoreChoice {
    let reason = |reason: &CoreReason| match reason {
        CoreReason::RepaysLoan => "repays a loan".into(),
        CoreReason::NotGuaranteed => "not named in the giver's guarantee".into(),
        CoreReason::NotOwed => "the giver owes it to nobody".into(),
        CoreReason::RecipientMemory(bytes) => format!("the recipient has {bytes} of memory there"),
        CoreReason::RecipientCores(n) => format!("the recipient has {n} cores there"),
        CoreReason::GiverCores(n) => format!("the giver has {n} cores there"),
    };
    api::CoreChoice {
        from: holder(&of.from),
        cpus: of.cpus.clone(),
        node: of.node,
        chosen: of.chosen,
        reasons: of.reasons.iter().map(reason).collect(),
    }
}

/// A transfer as it stands `now`.
pub(crate) fn transfer(of: &Report, now: Duration) -> api::Transfer {
    let (state, refused) = match &of.verdict {
        Verdict::Waiting => (api::TransferState::Waiting, None),
        Verdict::Moving => (api::TransferState::Moving, None),
        Verdict::Complete => (api::TransferState::Complete, None),
        Verdict::Partial => (api::TransferState::Partial, None),
        Verdict::Nothing => (api::TransferState::Nothing, None),
        Verdict::Refused(why) => (api::TransferState::Refused, Some(refusal(why))),
    };
    api::Transfer {
        id: of.id.0,
        request: api_request(&of.request),
        state,
        plan: of.plan.as_ref().map(plan),
        legs: of.legs.iter().map(|report| leg(report, of.asked)).collect(),
        asked_unix_ms: unix_ms(of.asked),
        took_us: micros(of.ended.unwrap_or(now).saturating_sub(of.asked)),
        refusal: refused,
    }
}

fn leg(of: &LegReport, asked: Duration) -> api::Leg {
    let stage_time = |time: &conuma_balancing::StageTime| api::StageTime {
        stage: stage(time.stage),
        began_us: micros(time.began.saturating_sub(asked)),
        took_us: time.took.map(micros),
    };
    api::Leg {
        planned: api_move(&of.planned),
        arrived: resources(&of.arrived),
        shortfalls: of.shortfalls.iter().map(shortfall).collect(),
        remarks: of.remarks.iter().map(|of_leg| remark(of_leg, &of.planned)).collect(),
        stages: of.stages.iter().map(stage_time).collect(),
    }
}

fn shortfall(of: &Shortfall) -> api::Shortfall {
    let message = match &of.why {
        Reason::DonorRefused(why) => format!("its guest refused: {why}"),
        Reason::DonorStarves => "its guest would run out of memory without it".into(),
        Reason::DonorKept => "its guest did not give it in time".into(),
        Reason::RecipientDidNotTake => "the recipient's guest did not take it in time".into(),
        Reason::GateFailed(failure) => format!("the gate could not be turned: {failure}"),
        Reason::HypervisorFailed(failure) => format!("QEMU did not do it: {failure}"),
        Reason::DonorGone => "the giver ended".into(),
        Reason::RecipientGone => "the recipient ended".into(),
        Reason::Interrupted => "the daemon was restarted before it was taken".into(),
        Reason::DonorNeeds => "it is owed, but a VM keeps its boot memory, its last core and its guarantee".into(),
        Reason::NoRoom => "the recipient has no room for it: its limit, or its devices".into(),
        Reason::Unanswering(vm) => format!("{vm} does not answer: its memory is left alone until it does"),
        Reason::Trespasses(vm) => format!("{vm} uses more memory than it holds: it gets none until it does not"),
        Reason::Fixed(vm, why) => format!("{vm} {why}"),
        Reason::PoolLacks(short) => format!("the recipient is still {short} short of its guarantee"),
    };
    api::Shortfall { what: resources(&of.what), code: kind_of(&of.why), message, now_with: holder(&of.now_with) }
}

fn remark(of: &Remark, planned: &Move) -> api::Remark {
    let without_it = if planned.what.cpus.is_empty() { "nobody made room" } else { "its gate was closed without it" };
    let message = match of {
        Remark::DonorSilent(Failure::Unreachable) => format!("the giver's agent is not connected: {without_it}"),
        Remark::DonorSilent(failure) => format!("the giver's agent: {failure}; {without_it}"),
        Remark::DonorRefused(why) => format!("the giver's guest refused ({why}), but owed it; its gate was closed"),
        Remark::DonorBusy(cpus) => format!("the giver was still running on CPUs {cpus}; its gate was closed firmly"),
        Remark::GateNotOpen => "the recipient's gate is not confirmed open yet; it is tried on".into(),
        Remark::RecipientUntold => "the recipient's agent will hear of it when it connects".into(),
        Remark::RecipientRefused(cpus, why) => format!("the recipient does not use CPUs {cpus}: {why}"),
        Remark::Unconfirmed => "the recipient plugged it, but did not confirm that it is online".into(),
        Remark::Unprepared => "the giver's agent could not make room beforehand".into(),
        Remark::Elsewhere(what) => format!("{what} did not come: looked for on other nodes"),
    };
    api::Remark { code: kind_of(of), message }
}

fn stage(of: Stage) -> api::Stage {
    match of {
        Stage::Quiesce => api::Stage::Quiesce,
        Stage::Close => api::Stage::Close,
        Stage::Force => api::Stage::Force,
        Stage::Open => api::Stage::Open,
        Stage::Enable => api::Stage::Enable,
        Stage::Prepare => api::Stage::Prepare,
        Stage::Shrink => api::Stage::Shrink,
        Stage::Settle => api::Stage::Settle,
        Stage::Grow => api::Stage::Grow,
        Stage::Confirm => api::Stage::Confirm,
        Stage::Return => api::Stage::Return,
        Stage::Done => api::Stage::Done,
    }
}

/// What a notice of the engine is to those who watch; also logs what a person should look at.
pub(crate) fn notice_event(of: &Notice, engine: &Engine, now: Duration) -> Option<api::EventKind> {
    Some(match of {
        Notice::Waiting { transfer } => api::EventKind::TransferWaiting { transfer: transfer.0 },
        Notice::Began { transfer, plan: began } => {
            api::EventKind::TransferBegan { transfer: transfer.0, plan: plan(began) }
        }
        Notice::Stage { transfer, leg, stage: reached } => {
            let report = engine.report(*transfer)?;
            let planned = report.legs.get(*leg).map(|leg| &leg.planned);
            api::EventKind::TransferStage {
                transfer: transfer.0,
                leg: count(*leg),
                from: planned.map(|planned| holder(&planned.from)),
                to: planned.map(|planned| holder(&planned.to)),
                stage: stage(*reached),
            }
        }
        Notice::Ended(report) => {
            tracing::info!(transfer = report.id.0, verdict = %kind_of(&report.verdict), "transfer ended");
            api::EventKind::TransferEnded(Box::new(transfer(report, now)))
        }
        Notice::Settled { vm } => api::EventKind::VmSettled { vm: vm.clone() },
        Notice::Silent { vm } => {
            tracing::warn!(%vm, "the guest does not answer: its memory neither shrinks nor grows until it does");
            api::EventKind::VmSilent { vm: vm.clone() }
        }
        Notice::Trespasses { vm, trespasses } => {
            match trespasses {
                true => tracing::warn!(%vm, "it uses more memory than it holds: it gets none until it does not"),
                false => tracing::info!(%vm, "it uses no more memory than it holds: it may have more again"),
            }
            api::EventKind::VmTrespasses { vm: vm.clone(), trespasses: *trespasses }
        }
        Notice::HostCpus { offline } => {
            match offline.is_empty() {
                true => tracing::info!("all CPUs of the host are online again"),
                false => {
                    tracing::warn!(%offline, "CPUs of the host are offline: their vCPUs are stopped until they return")
                }
            }
            api::EventKind::HostCpus { offline: offline.clone() }
        }
        Notice::Violated(what) => {
            tracing::error!(violation = %what, "an invariant does not hold");
            api::EventKind::Violated(violation(what))
        }
    })
}
