//! Opening the file: its schema, and what is done about a file that cannot be used.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::error::{HistoryError, Kind, Result, kind};
use crate::query::COLUMNS;
use crate::store::History;

/// How long a call waits for another process that holds the file, as one that makes a copy.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Who may read and write a file that is begun.
const MODE: u32 = 0o600;
/// `application_id` of our files: "cnma".
pub(crate) const APPLICATION: i32 = 0x636e_6d61;

/// From each version of the schema to the next; `user_version` counts those that were done. One that was released is
/// never changed.
///
/// Long values stand last: a row is read from its beginning, and what is searched for is there.
pub(crate) const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        cause TEXT NOT NULL,
        mode TEXT NOT NULL,
        predicted REAL NOT NULL,
        ended INTEGER,
        state TEXT,
        achieved REAL,
        summary TEXT NOT NULL,
        inputs TEXT NOT NULL,
        plan TEXT NOT NULL,
        detail TEXT,
        CHECK ((state IS NULL) = (ended IS NULL) AND (state IS NULL) = (detail IS NULL))
    ) STRICT;
    CREATE INDEX decisions_by_time ON decisions (at);
    CREATE INDEX decisions_by_state ON decisions (state);
    CREATE TABLE decision_vms (
        decision INTEGER NOT NULL REFERENCES decisions (id) ON DELETE CASCADE,
        vm TEXT NOT NULL,
        PRIMARY KEY (decision, vm)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX decisions_by_vm ON decision_vms (vm, decision);
"];

/// A history that is open, and what had to be done for it.
#[derive(Debug)]
pub struct Opened {
    /// The history.
    pub history: History,
    /// The file that was there and cannot be used: it was moved, and a new one begun. A person should be told.
    pub set_aside: Option<SetAside>,
}

/// A file that was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now: `<file>.bad-<seconds since 1970>`.
    pub moved_to: PathBuf,
    /// Why it cannot be used.
    pub why: Unusable,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is not a database, or what is in it is damaged.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is a database of another program.
    #[error("it is a database of another program")]
    Foreign,
    /// It was written by a newer Conuma.
    #[error("it is of version {found}, and {known} is the newest that is known here")]
    Newer {
        /// Its version.
        found: i64,
        /// The newest version that is known here.
        known: i64,
    },
}

/// Opens the file, or begins it.
pub(crate) fn open(path: &Path) -> Result<(Connection, Option<SetAside>)> {
    create(path)?;
    let why = match connect(path)? {
        Ok(connection) => return Ok((connection, None)),
        Err(why) => why,
    };
    let moved_to = set_aside(path, &why)?;
    create(path)?;
    match connect(path)? {
        Ok(connection) => Ok((connection, Some(SetAside { moved_to, why }))),
        Err(why) => Err(HistoryError::Begun { path: path.to_owned(), why }),
    }
}

/// A database that is gone when it is closed.
pub(crate) fn in_memory() -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_in_memory()?;
    prepare(&mut connection)?;
    Ok(connection)
}

/// SQLite would make the file, too, but with the mode of the process; the files beside it get the mode of this one.
fn create(path: &Path) -> Result<()> {
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(path);
    made.map(drop).map_err(|source| HistoryError::Create { path: path.to_owned(), source })
}

/// Opens a file that is there; what makes it unusable is no failure.
fn connect(path: &Path) -> Result<std::result::Result<Connection, Unusable>> {
    let attempt = || -> rusqlite::Result<std::result::Result<Connection, Unusable>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        if let Some(why) = unusable(&connection)? {
            return Ok(Err(why));
        }
        prepare(&mut connection)?;
        Ok(lacking(&connection)?.map_or(Ok(connection), Err))
    };
    match attempt() {
        Err(error) if kind(&error) == Kind::Damaged => Ok(Err(Unusable::Damaged(error.to_string()))),
        done => done.map_err(|source| HistoryError::Store { path: path.to_owned(), tried: "open".to_owned(), source }),
    }
}

/// Looks whether it is a file of ours that is whole. Reads only.
fn unusable(connection: &Connection) -> rusqlite::Result<Option<Unusable>> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, found) = (pragma("application_id")?, pragma("user_version")?);
    let parts: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (application, found, parts) == (0, 0, 0) {
        return Ok(None);
    }
    if application != i64::from(APPLICATION) || found < 1 {
        return Ok(Some(Unusable::Foreign));
    }
    let known = version();
    if found > known {
        return Ok(Some(Unusable::Newer { found, known }));
    }
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((said != "ok").then_some(Unusable::Damaged(said)))
}

/// Makes it as we use it.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA journal_size_limit = 4194304;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;",
    )?;
    migrate(connection)
}

/// All steps or none, as `user_version` changes with them.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let done: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if done >= version() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in MIGRATIONS.iter().skip(usize::try_from(done).unwrap_or(0)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", version())?;
    transaction.commit()
}

/// The version of the schema that is written here.
pub(crate) fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// A table or column that should be there, but is not.
fn lacking(connection: &Connection) -> rusqlite::Result<Option<Unusable>> {
    for sql in [format!("SELECT {COLUMNS} FROM decisions"), "SELECT decision, vm FROM decision_vms".to_owned()] {
        match connection.prepare(&sql) {
            Err(rusqlite::Error::SqlInputError { msg, .. }) => return Ok(Some(Unusable::Damaged(msg))),
            Err(rusqlite::Error::SqliteFailure(answer, Some(msg))) if answer.code == ErrorCode::Unknown => {
                return Ok(Some(Unusable::Damaged(msg)));
            }
            prepared => drop(prepared?),
        }
    }
    Ok(None)
}

/// Moves a file with what belongs to it. The file goes first: SQLite removes a log that lies beside an empty file.
fn set_aside(path: &Path, why: &Unusable) -> Result<PathBuf> {
    let mut seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut moved_to = beside(path, &format!(".bad-{seconds}"));
    while fs::symlink_metadata(&moved_to).is_ok() {
        seconds += 1;
        moved_to = beside(path, &format!(".bad-{seconds}"));
    }
    for part in ["", "-wal", "-journal"] {
        let (from, to) = (beside(path, part), beside(&moved_to, part));
        match fs::rename(&from, &to) {
            Err(source) if part.is_empty() || source.kind() != io::ErrorKind::NotFound => {
                return Err(HistoryError::SetAside { path: from, to, why: why.clone(), source });
            }
            Ok(()) | Err(_) => {}
        }
    }
    // An index of the log, made anew wherever it is missing.
    let index = beside(path, "-shm");
    match fs::remove_file(&index) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(HistoryError::SetAside { path: index, to: beside(&moved_to, "-shm"), why: why.clone(), source })
        }
        Ok(()) | Err(_) => Ok(moved_to),
    }
}

/// The file with the same name and a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}
