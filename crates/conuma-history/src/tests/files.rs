//! Files, disks and restarts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use super::*;
use crate::open::beside;

const PAGE: usize = 4_096;

/// Opens a file that is in order.
fn open(path: &Path) -> History {
    let Opened { history, set_aside } = History::open(path).expect("a history");
    assert_eq!(set_aside, None);
    history
}

fn all(history: &History) -> Vec<i64> {
    ids(&history.list(&Query::default()).expect("listing"))
}

/// A closed file with twenty decisions.
fn filled(dir: &Path) -> PathBuf {
    let path = dir.join("history.db");
    let mut history = open(&path);
    for number in 0..20 {
        history.append(&NewDecision { plan: Value::from("x".repeat(PAGE)), ..decision(number) }).expect("appending");
    }
    path
}

fn execute(path: &Path, sql: &str) {
    Connection::open(path).and_then(|connection| connection.execute_batch(sql)).expect("SQL");
}

#[test]
fn only_its_owner_may_read_it_and_a_restart_finds_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    let mut history = open(&path);
    assert_eq!(history.path(), path);
    history.append(&decision(0)).expect("appending");
    history.append(&decision(1)).expect("appending");
    history.finish(DecisionId(1), &outcome("done")).expect("finishing");
    let mut files = 0;
    for entry in fs::read_dir(dir.path()).expect("files").flatten() {
        let mode = entry.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
        files += 1;
    }
    assert_eq!(files, 3, "the file, its log and the index of that");
    let before = history.list(&Query::default()).expect("listing");
    drop(history);
    let mut history = open(&path);
    assert_eq!(history.list(&Query::default()).expect("listing"), before);
    assert_eq!(ids(&history.under_way().expect("listing")), [2]);
    assert_eq!(history.append(&decision(2)).expect("appending"), DecisionId(3));
}

#[test]
fn a_daemon_that_is_killed_leaves_what_it_had_appended() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    let mut history = open(&path);
    for number in 0..5 {
        history.append(&decision(number)).expect("appending");
    }
    history.finish(DecisionId(1), &outcome("done")).expect("finishing");
    // As the files are while it is open, and with a log that ends anywhere: what was being written is not there.
    let (file, log) = (fs::read(&path).expect("a file"), fs::read(beside(&path, "-wal")).expect("a log"));
    let mut most = 0;
    for length in (0..log.len()).step_by(997).chain([log.len()]) {
        let dir = tempfile::tempdir().expect("a directory");
        let copy = dir.path().join("history.db");
        fs::write(&copy, &file).expect("writing");
        fs::write(beside(&copy, "-wal"), &log[..length]).expect("writing");
        let mut history = open(&copy);
        let found = i64::try_from(all(&history).len()).expect("a number");
        assert_eq!(all(&history), (1..=found).rev().collect::<Vec<_>>(), "{length} bytes of the log");
        assert!(found >= most, "{length} bytes of the log");
        most = found;
        assert_eq!(history.append(&decision(9)).expect("appending"), DecisionId(found + 1));
        if length == log.len() {
            assert_eq!(ids(&history.under_way().expect("listing")), [6, 5, 4, 3, 2]);
        }
    }
    assert_eq!(most, 5);
}

#[test]
fn a_file_that_cannot_be_used_is_moved_aside_and_a_new_one_is_begun() {
    type Spoil = fn(&Path);
    let page = |path: &Path, number: usize| {
        let mut bytes = fs::read(path).expect("a file");
        bytes[number * PAGE..(number + 1) * PAGE].fill(0xa5);
        fs::write(path, bytes).expect("writing");
    };
    let check = |what: &str, spoil: &dyn Fn(&Path), expected: fn(&Unusable) -> bool| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = filled(dir.path());
        spoil(&path);
        let bad = fs::read(&path).expect("a file");
        let Opened { mut history, set_aside } = History::open(&path).expect("a history");
        let SetAside { moved_to, why } = set_aside.unwrap_or_else(|| panic!("{what}: it is used"));
        assert!(expected(&why), "{what}: {why:?}");
        let name = moved_to.file_name().and_then(|name| name.to_str()).expect("a name");
        let seconds = name.strip_prefix("history.db.bad-").expect("a name");
        assert!(seconds.parse::<u64>().is_ok_and(|seconds| seconds > 1_700_000_000), "{name}");
        assert!(fs::read(&moved_to).expect("it was moved") == bad, "{what}: it is another file");
        assert_eq!(fs::metadata(&path).expect("a new file").permissions().mode() & 0o777, 0o600, "{what}");
        assert!(all(&history).is_empty(), "{what}");
        history.append(&decision(0)).expect("appending");
        drop(history);
        assert_eq!(all(&open(&path)), [1], "{what}");
    };
    let damaged = |why: &Unusable| matches!(why, Unusable::Damaged(_));
    let texts: [(&str, Spoil); 5] = [
        ("text", |path| fs::write(path, "no database ".repeat(1_000)).expect("writing")),
        ("two bytes", |path| fs::write(path, "no").expect("writing")),
        ("cut off", |path| {
            let bytes = fs::read(path).expect("a file");
            fs::write(path, &bytes[..8 * PAGE + 100]).expect("writing");
        }),
        ("without a table", |path| execute(path, "DROP TABLE decision_vms")),
        ("without an index", |path| {
            execute(path, "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'decisions_by_time'");
        }),
    ];
    for (what, spoil) in texts {
        check(what, &spoil, damaged);
    }
    for number in 0..12 {
        check(&format!("page {number}"), &|path| page(path, number), damaged);
    }
    let foreign = |why: &Unusable| *why == Unusable::Foreign;
    check("of another program", &|path| execute(path, "PRAGMA application_id = 7"), foreign);
    let newer = |why: &Unusable| *why == Unusable::Newer { found: 99, known: 1 };
    check("newer", &|path| execute(path, "PRAGMA user_version = 99"), newer);
    let plain = |path: &Path| {
        fs::remove_file(path).expect("removing it");
        execute(path, "CREATE TABLE decisions (id)");
    };
    check("of a program that says nothing", &plain, foreign);
}

#[test]
fn a_newer_file_is_moved_with_its_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = filled(dir.path());
    let other = dir.path().join("other.db");
    let connection = Connection::open(&path).expect("a file");
    connection.execute_batch("PRAGMA user_version = 99; DELETE FROM decisions WHERE id > 3").expect("SQL");
    for part in ["", "-wal"] {
        fs::copy(beside(&path, part), beside(&other, part)).expect("copying");
    }
    let moved = History::open(&other).expect("a history").set_aside.expect("it is moved").moved_to;
    let left: i64 = Connection::open(&moved)
        .and_then(|connection| connection.query_row("SELECT count(*) FROM decisions", [], |row| row.get(0)))
        .expect("it can be read");
    assert_eq!(left, 3);
}

#[test]
fn files_that_are_moved_within_a_second_do_not_replace_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..3 {
        fs::write(&path, format!("no database {round}")).expect("writing");
        fs::write(beside(&path, "-wal"), "no log").expect("writing");
        let moved = History::open(&path).expect("a history").set_aside.expect("it is moved").moved_to;
        assert_eq!(fs::read_to_string(&moved).expect("a file"), format!("no database {round}"));
        assert!(seen.insert(moved));
    }
}

#[test]
fn an_empty_file_is_begun() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    fs::write(&path, "").expect("writing");
    assert!(all(&open(&path)).is_empty());
}

#[test]
fn a_full_disk_is_an_error_and_goes_on_where_there_is_space_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    let mut history = open(&path);
    let limit = |history: &History, pages: i64| {
        history.connection.pragma_update(None, "max_page_count", pages).expect("a limit");
    };
    let long = NewDecision { inputs: Value::from("x".repeat(3 * PAGE)), ..decision(0) };
    let fill = |history: &mut History| {
        let mut appended = 0_u32;
        loop {
            match history.append(&long) {
                Ok(_) => appended += 1,
                Err(error) => break (appended, error),
            }
        }
    };
    limit(&history, 100);
    let (appended, error) = fill(&mut history);
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.to_string().starts_with(&format!("cannot append a decision to {} (", path.display())), "{error}");
    assert!(appended > 5 && appended < 30, "{appended}");
    // What is there can be read, and nothing of what failed is.
    let expected: Vec<i64> = (1..=i64::from(appended)).rev().collect();
    assert_eq!(all(&history), expected);
    let detail = Value::from("x".repeat(30 * PAGE));
    let error = history.finish(DecisionId(1), &Outcome { detail, ..outcome("done") }).expect_err("it is full");
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.to_string().starts_with("cannot finish decision 1 in "), "{error}");
    assert_eq!(ids(&history.under_way().expect("listing")), expected);
    // A history that has as many decisions as it may have needs no more space for another one.
    history.set_keep(Keep { decisions: appended, days: 90 });
    for _ in 0..50 {
        history.append(&long).expect("an old one makes room");
    }
    assert_eq!(history.count().expect("counting"), u64::from(appended));
    history.set_keep(Keep::default());
    assert_eq!(fill(&mut history).1.kind(), Kind::Full);
    limit(&history, 1_000);
    let last = history.append(&long).expect("appending");
    assert_eq!(history.finish(last, &outcome("done")).expect("finishing"), Finished::Recorded);
    let before = all(&history);
    drop(history);
    assert_eq!(all(&open(&path)), before);
}

#[test]
fn what_may_not_be_written_can_be_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut history = open(&filled(dir.path()));
    let read_only = |history: &History, yes: bool| {
        history.connection.pragma_update(None, "query_only", yes).expect("a setting");
    };
    read_only(&history, true);
    assert_eq!(history.append(&decision(0)).expect_err("read-only").kind(), Kind::ReadOnly);
    assert_eq!(history.finish(DecisionId(1), &outcome("done")).expect_err("read-only").kind(), Kind::ReadOnly);
    assert_eq!(all(&history).len(), 20);
    read_only(&history, false);
    history.append(&decision(0)).expect("appending");
}

#[test]
fn another_process_that_holds_the_file_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = filled(dir.path());
    let mut history = open(&path);
    history.connection.busy_timeout(Duration::ZERO).expect("no patience");
    let other = Connection::open(&path).expect("a file");
    other.execute_batch("BEGIN IMMEDIATE").expect("SQL");
    let error = history.append(&decision(0)).expect_err("it is held");
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(all(&history).len(), 20);
    other.execute_batch("COMMIT").expect("SQL");
    history.append(&decision(0)).expect("appending");
}

#[test]
fn a_place_that_cannot_have_a_file_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |path: &Path| {
        let error = History::open(path).expect_err("no file");
        assert!(matches!(error, HistoryError::Create { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("cannot create {}", path.display()));
    };
    check(&dir.path().join("absent/history.db"));
    check(dir.path());
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn a_row_that_somebody_damaged_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = filled(dir.path());
    execute(&path, "UPDATE decisions SET plan = '[1,' WHERE id = 7");
    let history = open(&path);
    let error = history.get(DecisionId(7)).expect_err("it is damaged");
    assert_eq!(error.kind(), Kind::Damaged);
    let source = std::error::Error::source(&error).expect("a source").to_string();
    assert!(source.contains("decision 7: "), "{source}");
    assert!(history.get(DecisionId(6)).expect("reading").is_some());
}
