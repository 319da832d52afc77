//! Questions to the history, and how rows become decisions.

use conuma_topology::VmName;
use rusqlite::types::{Type, Value as SqlValue};
use rusqlite::{Connection, Row, Statement};
use serde_json::Value;

use crate::types::{Decision, DecisionId, Outcome, UnixMillis};

/// The most decisions that one answer has.
pub const MAX_LIMIT: u32 = 1_000;
/// An answer ends after this many bytes of JSON values, in the form in which they are stored.
pub const MAX_ANSWER: usize = 32 << 20;

/// Which decisions. A default one asks for the newest 100.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Those that concern this VM.
    pub vm: Option<VmName>,
    /// Those that were made then or later.
    pub from: Option<UnixMillis>,
    /// Those that were made before then.
    pub to: Option<UnixMillis>,
    /// Those of this state.
    pub state: Option<StateFilter>,
    /// Those that were appended before this one, which need not be there: the last of an answer gives the next page.
    pub before: Option<DecisionId>,
    /// At most so many; more than [`MAX_LIMIT`] are never given.
    pub limit: u32,
}

impl Default for Query {
    fn default() -> Self {
        Self { vm: None, from: None, to: None, state: None, before: None, limit: 100 }
    }
}

/// Which state decisions are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateFilter {
    /// Without an outcome.
    UnderWay,
    /// With an outcome of exactly this [`state`](Outcome::state).
    Ended(String),
}

/// What a row has, in the order in which [`decision`] reads it.
pub(crate) const COLUMNS: &str =
    "id, at, cause, mode, predicted, ended, state, achieved, summary, inputs, plan, detail";

/// Those that a query asks for. Ids are looked for first, so that rows with long values are read only if they are
/// given, and never sorted.
pub(crate) fn list(connection: &Connection, query: &Query) -> rusqlite::Result<Vec<Decision>> {
    let (condition, mut values) = condition(query);
    values.push(i64::from(query.limit.min(MAX_LIMIT)).into());
    let sql = format!(
        "SELECT {COLUMNS} FROM decisions \
         WHERE id IN (SELECT id FROM decisions WHERE {condition} ORDER BY id DESC LIMIT ?) ORDER BY id DESC"
    );
    read(connection, &sql, values)
}

/// One, if it is there.
pub(crate) fn get(connection: &Connection, id: DecisionId) -> rusqlite::Result<Option<Decision>> {
    let sql = format!("SELECT {COLUMNS} FROM decisions WHERE id = ?");
    Ok(read(connection, &sql, vec![id.0.into()])?.pop())
}

/// A query in SQL, with the values for its question marks.
fn condition(query: &Query) -> (String, Vec<SqlValue>) {
    let mut parts = vec!["TRUE"];
    let mut values: Vec<SqlValue> = Vec::new();
    if let Some(vm) = &query.vm {
        parts.push("id IN (SELECT decision FROM decision_vms WHERE vm = ?)");
        values.push(vm.as_str().to_owned().into());
    }
    let bounds = [
        ("at >= ?", query.from.map(|from| from.0)),
        ("at < ?", query.to.map(|to| to.0)),
        ("id < ?", query.before.map(|before| before.0)),
    ];
    for (part, bound) in bounds {
        if let Some(bound) = bound {
            parts.push(part);
            values.push(bound.into());
        }
    }
    match &query.state {
        Some(StateFilter::UnderWay) => parts.push("state IS NULL"),
        Some(StateFilter::Ended(state)) => {
            parts.push("state = ?");
            values.push(state.clone().into());
        }
        None => {}
    }
    (parts.join(" AND "), values)
}

fn read(connection: &Connection, sql: &str, values: Vec<SqlValue>) -> rusqlite::Result<Vec<Decision>> {
    let mut vms = connection.prepare("SELECT vm FROM decision_vms WHERE decision = ? ORDER BY vm")?;
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut decisions = Vec::new();
    let mut bytes = 0;
    while bytes < MAX_ANSWER
        && let Some(row) = rows.next()?
    {
        let (decision, length) = decision(row, &mut vms)?;
        decisions.push(decision);
        bytes += length;
    }
    Ok(decisions)
}

/// A row as a decision, and how long its JSON values were.
fn decision(row: &Row<'_>, vms: &mut Statement<'_>) -> rusqlite::Result<(Decision, usize)> {
    let id = DecisionId(row.get(0)?);
    let mut bytes = 0;
    let mut json = |column: usize| -> rusqlite::Result<Value> {
        let text: String = row.get(column)?;
        bytes += text.len();
        serde_json::from_str(&text).map_err(|error| damaged(column, id, &error))
    };
    let state: Option<String> = row.get(6)?;
    let outcome = match state {
        None => None,
        Some(state) => Some(Outcome { at: UnixMillis(row.get(5)?), state, achieved: row.get(7)?, detail: json(11)? }),
    };
    let decision = Decision {
        id,
        at: UnixMillis(row.get(1)?),
        cause: row.get(2)?,
        mode: row.get(3)?,
        vms: names(id, vms)?,
        summary: row.get(8)?,
        predicted: row.get(4)?,
        inputs: json(9)?,
        plan: json(10)?,
        outcome,
    };
    Ok((decision, bytes))
}

fn names(id: DecisionId, vms: &mut Statement<'_>) -> rusqlite::Result<Vec<VmName>> {
    let names = vms.query_map([id.0], |row| row.get::<_, String>(0))?;
    names.map(|name| name?.parse().map_err(|error| damaged(0, id, &error))).collect()
}

fn damaged(column: usize, id: DecisionId, error: &dyn std::error::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("decision {id}: {error}").into())
}
