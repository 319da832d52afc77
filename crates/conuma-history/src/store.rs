//! The history itself: what is written.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use serde_json::Value;

use crate::error::{HistoryError, Refusal, Result};
use crate::open::{self, Opened};
use crate::query::{self, MAX_LIMIT, Query, StateFilter};
use crate::types::{Decision, DecisionId, NewDecision, Outcome};

/// The longest value that is kept, in bytes of text: each JSON value, and each text.
pub const MAX_VALUE: usize = 1 << 20;
/// How many levels lists and objects of a JSON value may be within each other.
pub const MAX_DEPTH: usize = 100;

const MILLIS_PER_DAY: i64 = 24 * 60 * 60 * 1_000;

/// Removes all but so many of the newest. Ids have no gaps but where older decisions were removed.
pub(crate) const PRUNE_BY_NUMBER: &str = "DELETE FROM decisions WHERE id <= (SELECT max(id) FROM decisions) - ?1";
/// Removes those that are older.
pub(crate) const PRUNE_BY_AGE: &str = "DELETE FROM decisions WHERE at < ?1";

/// How much of the past is kept. Both bounds hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How many of the decisions that were appended last; at least the very last.
    pub decisions: u32,
    /// How old a decision may be, in days before the one that was appended last.
    pub days: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self { decisions: 10_000, days: 90 }
    }
}

/// What [`History::finish`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The decision was under way, and has this outcome now.
    Recorded,
    /// The decision had an outcome, which stays.
    Already,
    /// There is no such decision: it was never appended, or is no longer kept.
    Unknown,
}

/// The history of decisions.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    pub(crate) connection: Connection,
    keep: Keep,
}

impl History {
    /// Opens the history in the file `path`, or begins it with mode 0600; its directory has to be there. A file that
    /// cannot be used is moved aside, which the answer tells. Reads the whole file once, to see that it is sound.
    ///
    /// # Errors
    /// The file cannot be made, written or moved, or another process holds it. Nothing is moved for such a reason.
    pub fn open(path: &Path) -> Result<Opened> {
        let (connection, set_aside) = open::open(path)?;
        Ok(Opened { history: Self { path: path.to_owned(), connection, keep: Keep::default() }, set_aside })
    }

    /// An empty history that is gone when it is dropped: for tests, and for a daemon that has no place for a file.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn in_memory() -> Result<Self> {
        let path = PathBuf::from(":memory:");
        match open::in_memory() {
            Ok(connection) => Ok(Self { path, connection, keep: Keep::default() }),
            Err(source) => Err(HistoryError::Store { path, tried: "open".to_owned(), source }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes how much is kept, from the next [`append`](Self::append) on.
    pub fn set_keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// Appends a decision, which is under way from then on, and removes those that are no longer to be kept.
    ///
    /// # Errors
    /// A value cannot be kept ([`Refusal`]), or the file cannot be written. Nothing was changed then.
    pub fn append(&mut self, decision: &NewDecision) -> Result<DecisionId> {
        let tried = "append a decision to";
        let texts = [("cause", &decision.cause), ("mode", &decision.mode), ("summary", &decision.summary)];
        for (field, text) in texts {
            check_length(text).map_err(|why| self.refused(tried, field, why))?;
        }
        check_number(decision.predicted).map_err(|why| self.refused(tried, "predicted", why))?;
        let inputs = json(&decision.inputs).map_err(|why| self.refused(tried, "inputs", why))?;
        let plan = json(&decision.plan).map_err(|why| self.refused(tried, "plan", why))?;
        let appended = self.add(decision, &inputs, &plan);
        appended.map_err(|source| self.failed(tried, source))
    }

    fn add(&mut self, decision: &NewDecision, inputs: &str, plan: &str) -> rusqlite::Result<DecisionId> {
        let keep = self.keep;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // The oldest go first: the new one can have their place in a file that cannot grow.
        prune(&transaction, keep, decision.at.0)?;
        transaction.execute(
            "INSERT INTO decisions (at, cause, mode, predicted, summary, inputs, plan) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                decision.at.0,
                decision.cause,
                decision.mode,
                decision.predicted,
                decision.summary,
                inputs,
                plan
            ],
        )?;
        let id = transaction.last_insert_rowid();
        let mut name = transaction.prepare("INSERT OR IGNORE INTO decision_vms (decision, vm) VALUES (?1, ?2)")?;
        for vm in &decision.vms {
            name.execute(params![id, vm.as_str()])?;
        }
        drop(name);
        transaction.commit()?;
        Ok(DecisionId(id))
    }

    /// Gives a decision its outcome. The first outcome stays: telling it again, or another one, changes nothing.
    ///
    /// # Errors
    /// A value cannot be kept ([`Refusal`]), or the file cannot be written. Nothing was changed then.
    pub fn finish(&mut self, id: DecisionId, outcome: &Outcome) -> Result<Finished> {
        let tried = format!("finish decision {id} in");
        check_length(&outcome.state).map_err(|why| self.refused(&tried, "state", why))?;
        let achieved = outcome.achieved.map_or(Ok(()), check_number);
        achieved.map_err(|why| self.refused(&tried, "achieved", why))?;
        let detail = json(&outcome.detail).map_err(|why| self.refused(&tried, "detail", why))?;
        self.end(id, outcome, &detail).map_err(|source| self.failed(&tried, source))
    }

    fn end(&self, id: DecisionId, outcome: &Outcome, detail: &str) -> rusqlite::Result<Finished> {
        let changed = self.connection.execute(
            "UPDATE decisions SET ended = ?2, state = ?3, achieved = ?4, detail = ?5 WHERE id = ?1 AND state IS NULL",
            params![id.0, outcome.at.0, outcome.state, outcome.achieved, detail],
        )?;
        if changed > 0 {
            return Ok(Finished::Recorded);
        }
        let there = "SELECT EXISTS (SELECT 1 FROM decisions WHERE id = ?1)";
        let there: bool = self.connection.query_row(there, [id.0], |row| row.get(0))?;
        Ok(if there { Finished::Already } else { Finished::Unknown })
    }

    /// Decisions without an outcome, newest first, as many as [`list`](Self::list) gives at once: after those are finished
    /// ask again, until there are none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn under_way(&self) -> Result<Vec<Decision>> {
        self.list(&Query { state: Some(StateFilter::UnderWay), limit: MAX_LIMIT, ..Query::default() })
    }

    /// The decisions that `query` asks for, newest first: in the opposite order of their ids, whatever the clock said.
    ///
    /// An answer has at most [`MAX_LIMIT`] decisions, and ends early after [`MAX_ANSWER`](crate::MAX_ANSWER) bytes of values,
    /// with one decision at least. So it is an empty answer that says that there are no more, not a short one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn list(&self, query: &Query) -> Result<Vec<Decision>> {
        query::list(&self.connection, query).map_err(|source| self.failed("list decisions of", source))
    }

    /// One decision, if it is (still) there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, id: DecisionId) -> Result<Option<Decision>> {
        query::get(&self.connection, id).map_err(|source| self.failed(&format!("read decision {id} of"), source))
    }

    /// How many decisions there are.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn count(&self) -> Result<u64> {
        let count = self.connection.query_row("SELECT count(*) FROM decisions", [], |row| row.get::<_, u32>(0));
        count.map(u64::from).map_err(|source| self.failed("count decisions of", source))
    }

    fn failed(&self, tried: &str, source: rusqlite::Error) -> HistoryError {
        HistoryError::Store { path: self.path.clone(), tried: tried.to_owned(), source }
    }

    fn refused(&self, tried: &str, field: &'static str, why: Refusal) -> HistoryError {
        HistoryError::Refused { path: self.path.clone(), tried: tried.to_owned(), field, why }
    }
}

/// Makes room for a decision of the time `now`. Both removals go by an index, and cost what there is to remove.
fn prune(transaction: &Transaction<'_>, keep: Keep, now: i64) -> rusqlite::Result<()> {
    transaction.execute(PRUNE_BY_NUMBER, [i64::from(keep.decisions.max(1)) - 1])?;
    transaction.execute(PRUNE_BY_AGE, [now.saturating_sub(i64::from(keep.days) * MILLIS_PER_DAY)])?;
    Ok(())
}

/// A value as text.
fn json(value: &Value) -> std::result::Result<String, Refusal> {
    check_depth(value, MAX_DEPTH)?;
    let text = value.to_string();
    check_length(&text)?;
    Ok(text)
}

/// A reader of JSON stops at some depth, so what is deeper could be written, but not read.
fn check_depth(value: &Value, left: usize) -> std::result::Result<(), Refusal> {
    let Some(below) = left.checked_sub(1) else {
        return if value.is_array() || value.is_object() { Err(Refusal::TooDeep) } else { Ok(()) };
    };
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_depth(item, below)),
        Value::Object(fields) => fields.values().try_for_each(|field| check_depth(field, below)),
        _ => Ok(()),
    }
}

fn check_length(text: &str) -> std::result::Result<(), Refusal> {
    if text.len() > MAX_VALUE { Err(Refusal::TooLong { bytes: text.len() }) } else { Ok(()) }
}

fn check_number(number: f64) -> std::result::Result<(), Refusal> {
    if number.is_finite() { Ok(()) } else { Err(Refusal::NotFinite) }
}
