//! `plan rebalance`, `rebalance`, `history`.

use std::collections::BTreeSet;

use conuma_api::{Client, DecidedMove, DecisionState, EventKind, HistoryQuery, Transfer, TransferState};

use super::policy::millis;
use super::watch::{Changes, now_unix_ms};
use crate::Outcome;
use crate::cli::{HistoryArgs, RebalanceArgs};
use crate::console::Console;
use crate::failure::{self, WithHint};
use crate::render;

pub(super) async fn plan(client: &Client, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    console.result(&client.plan_rebalance().await?, render::decision::plan)?;
    Ok(Outcome::Done)
}

pub(super) async fn rebalance(
    client: &Client,
    args: &RebalanceArgs,
    console: &mut Console<'_>,
) -> anyhow::Result<Outcome> {
    // Listens before it asks, so that no stage passes unseen.
    let kinds: &[&str] = if args.quiet { &["transfer-ended", "decision-ended"] } else { &[] };
    let mut changes = Changes::listen(client, None, kinds, args.deadline).await?;
    let mut decision = client.rebalance().await?;
    let ids: BTreeSet<u64> = decision.moves.iter().filter_map(|decided| decided.transfer).collect();
    while decision.state == DecisionState::UnderWay {
        let transfers = transfers(client, &ids).await;
        if !args.quiet {
            console.progress(&progress(&transfers, console.err_style))?;
        }
        if decision.id.is_none() && transfers.iter().all(|transfer| transfer.state.is_final()) {
            decision.state = outcome(&mut decision.moves, &transfers);
            break;
        }
        let concerns = |event: &EventKind| event.transfer().is_some() || is_end_of(event, decision.id);
        if !changes.wait_for(concerns).await? {
            let what = format!("the moves are still under way after {:?}", args.deadline.unwrap_or_default());
            let hint = match decision.id {
                Some(id) => format!("they go on: `conuma history {id}` tells what becomes of them"),
                None => "they go on: `conuma events` and `conuma show` tell what becomes of them".into(),
            };
            return Err(WithHint { what, hint }.into());
        }
        if let Some(id) = decision.id {
            decision = client.decision(id).await?;
        }
    }
    console.result(&decision, render::decision::result)?;
    if decision.moves.is_empty() {
        return Ok(Outcome::Done);
    }
    match decision.state {
        DecisionState::Done => Ok(Outcome::Done),
        DecisionState::Partial => Ok(Outcome::Partly),
        DecisionState::Refused => Ok(Outcome::Refused),
        state => {
            let what = format!("the daemon says that the decision is `{state}`, which is no end of it");
            Err(WithHint { what, hint: "conuma and conumad should be of the same version".into() }.into())
        }
    }
}

fn is_end_of(event: &EventKind, decision: Option<u64>) -> bool {
    matches!(event, EventKind::DecisionEnded { id, .. } if *id == decision)
}

/// These transfers, as far as the daemon remembers them.
async fn transfers(client: &Client, ids: &BTreeSet<u64>) -> Vec<Transfer> {
    let mut transfers = Vec::new();
    for id in ids {
        transfers.extend(client.transfer_by_id(*id).await.ok());
    }
    transfers
}

fn progress(transfers: &[Transfer], style: crate::style::Style) -> Vec<String> {
    let lines = render::decision::progress(transfers, style);
    if lines.is_empty() { vec!["all has ended; what it brought is measured".into()] } else { lines }
}

/// What a decision that is in no history came to, by its transfers.
fn outcome(moves: &mut [DecidedMove], transfers: &[Transfer]) -> DecisionState {
    for decided in moves.iter_mut() {
        let transfer = transfers.iter().find(|transfer| Some(transfer.id) == decided.transfer);
        decided.state = transfer.map(|transfer| transfer.state);
    }
    let is = |decided: &DecidedMove, state| decided.state == Some(state);
    let some = |decided: &DecidedMove| is(decided, TransferState::Complete) || is(decided, TransferState::Partial);
    match moves.iter().all(|decided| is(decided, TransferState::Complete)) {
        true => DecisionState::Done,
        false if moves.iter().any(some) => DecisionState::Partial,
        false => DecisionState::Refused,
    }
}

pub(super) async fn history(client: &Client, args: HistoryArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let now = now_unix_ms();
    if let Some(id) = args.id {
        let decision = client.decision(id).await.map_err(|error| match failure::is_not_found_by(&error) {
            // The names of VMs are no help here.
            true => anyhow::Error::from(WithHint {
                what: error.to_string(),
                hint: "`conuma history` lists those that are kept".into(),
            }),
            false => error.into(),
        })?;
        console.result(&decision, |decision, style| render::decision::full(decision, now, style))?;
        return Ok(Outcome::Done);
    }
    let HistoryArgs { id: _, vm, since, state, limit } = args;
    let filtered = vm.is_some() || since.is_some() || state.is_some();
    let query = HistoryQuery {
        vm,
        since_ms: since.map(|since| now.saturating_sub(millis(since))),
        state: state.as_deref().map(DecisionState::of),
        limit: Some(limit),
        ..HistoryQuery::default()
    };
    let decisions = client.history(&query).await?;
    console.result(&decisions, |decisions, style| render::decision::list(decisions, filtered, now, style))?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_api::{Holder, Reason, Resources, TransferRequest};

    fn check(states: &[(u64, TransferState)], expected: DecisionState) {
        let decided = |transfer| DecidedMove {
            from: Holder::Pool,
            to: Holder::Reserve,
            what: Resources::default(),
            why: Reason { code: "host".into(), text: "the host itself is short".into() },
            transfer,
            state: None,
            refusal: None,
        };
        let transfer = |(id, state): &(u64, TransferState)| Transfer {
            id: *id,
            request: TransferRequest::Rebalance { moves: vec![], below: Default::default(), owed: false },
            state: *state,
            plan: None,
            legs: vec![],
            asked_unix_ms: 0,
            took_us: 0,
            refusal: None,
        };
        let mut moves = vec![decided(Some(1)), decided(Some(2))];
        let transfers: Vec<Transfer> = states.iter().map(transfer).collect();
        assert_eq!(outcome(&mut moves, &transfers), expected, "{states:?}");
        assert_eq!(moves[0].state, states.iter().find(|(id, _)| *id == 1).map(|(_, state)| *state));
    }

    #[test]
    fn transfers_tell_what_became_of_a_decision() {
        use TransferState::{Complete, Nothing, Partial};
        check(&[(1, Complete), (2, Complete)], DecisionState::Done);
        check(&[(1, Complete), (2, Nothing)], DecisionState::Partial);
        check(&[(2, Partial)], DecisionState::Partial);
        check(&[(1, Nothing)], DecisionState::Refused);
        check(&[], DecisionState::Refused);
    }
}
