//! The journal: what the engine knew, on disk before it is acted on.
//!
//! It must survive the daemon, not the host: when the host goes down every VM goes with it, and a journal
//! of VMs that are no more is worth nothing. So a write goes to the page cache and is not synced
//! (some 100 µs instead of milliseconds in the path of every transfer), and the journal names the boot
//! it belongs to: one of another boot is moved aside unread. So is one that cannot be read, with a
//! warning; what is lost then are loans and transfers under way, while who holds what is found again on
//! the host itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use redb::backends::FileBackend;
use redb::{Database, ReadableTable as _, StorageBackend, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const STATE: &str = "state";
const HISTORY: &str = "history";
const BOOT: &str = "boot";

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    database: Database,
    last: Vec<u8>,
}

impl Journal {
    /// Opens the journal at `path`, made if it is not there, and gives the state and the history that are in it, if
    /// they are there of this boot and can be read. Only fails if no journal can be written at all.
    pub fn open<S, H>(path: &Path, boot_id: &str) -> anyhow::Result<(Self, Option<(S, H)>)>
    where
        S: DeserializeOwned,
        H: DeserializeOwned + Default,
    {
        match load(path, boot_id) {
            Ok((database, kept)) => Ok((Self { database, last: Vec::new() }, kept)),
            Err(error) => {
                let aside = set_aside(path)?;
                tracing::warn!(
                    journal = %path.display(), moved_to = %aside.display(), "the journal is not used: {error:#}; \
                     loans and transfers under way are forgotten, holdings are read from the host"
                );
                let (database, _) = load::<S, H>(path, boot_id)?;
                Ok((Self { database, last: Vec::new() }, None))
            }
        }
    }

    /// Writes `state`, unless it is what was written last, and `history` with it where there is a new one.
    pub fn write<S: Serialize, H: Serialize>(&mut self, state: &S, history: Option<&H>) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(state).context("the state cannot be written as JSON")?;
        if bytes == self.last && history.is_none() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            records.insert(STATE, bytes.as_slice())?;
            if let Some(history) = history {
                let bytes = serde_json::to_vec(history).context("the history cannot be written as JSON")?;
                records.insert(HISTORY, bytes.as_slice())?;
            }
        }
        transaction.commit()?;
        self.last = bytes;
        Ok(())
    }
}

fn load<S, H>(path: &Path, boot_id: &str) -> anyhow::Result<(Database, Option<(S, H)>)>
where
    S: DeserializeOwned,
    H: DeserializeOwned + Default,
{
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let database = redb::Builder::new().create_with_backend(Unsynced::new(file)?).context("it cannot be opened")?;
    let transaction = database.begin_write()?;
    let kept = {
        let mut records = transaction.open_table(RECORDS)?;
        let boot = records.get(BOOT)?.map(|boot| String::from_utf8_lossy(boot.value()).into_owned());
        match boot {
            Some(boot) if boot != boot_id => anyhow::bail!("it is of an earlier boot of this host"),
            Some(_) => {}
            None => drop(records.insert(BOOT, boot_id.as_bytes())?),
        }
        match (records.get(STATE)?, records.get(HISTORY)?) {
            (None, _) => None,
            (Some(state), history) => {
                let state = serde_json::from_slice(state.value()).context("its state cannot be read")?;
                let history = history.map(|history| serde_json::from_slice(history.value())).transpose();
                Some((state, history.context("its history cannot be read")?.unwrap_or_default()))
            }
        }
    };
    transaction.commit()?;
    Ok((database, kept))
}

fn set_aside(path: &Path) -> anyhow::Result<PathBuf> {
    let aside = path.with_extension("redb.unused");
    std::fs::rename(path, &aside)
        .with_context(|| format!("cannot move the unusable journal {} aside", path.display()))?;
    Ok(aside)
}

/// A file that is never synced.
#[derive(Debug)]
struct Unsynced(FileBackend);

impl Unsynced {
    fn new(file: File) -> Result<Self, redb::DatabaseError> {
        FileBackend::new(file).map(Self)
    }
}

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Vec<u32>;

    const NO_NEW: Option<&Numbers> = None;

    fn open(path: &Path, boot: &str) -> (Journal, Option<(Numbers, Numbers)>) {
        Journal::open(path, boot).expect("a journal")
    }

    #[test]
    fn what_was_written_last_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.redb");
        let (mut journal, state) = open(&path, "boot 1");
        assert_eq!(state, None);
        for state in [vec![1], vec![1, 2], vec![1, 2]] {
            journal.write(&state, NO_NEW).expect("writing");
        }
        journal.write(&vec![1, 2], Some(&vec![7])).expect("writing");
        journal.write(&vec![3], NO_NEW).expect("writing");
        drop(journal);
        assert_eq!(open(&path, "boot 1").1, Some((vec![3], vec![7])));
    }

    #[test]
    fn a_killed_daemon_leaves_its_last_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.redb");
        let (mut journal, _) = open(&path, "boot 1");
        journal.write(&vec![7_u32], NO_NEW).expect("writing");
        // What a kill leaves is the file as it is now, never closed.
        let copy = dir.path().join("copy.redb");
        std::fs::copy(&path, &copy).expect("copying");
        assert_eq!(open(&copy, "boot 1").1, Some((vec![7], vec![])));
    }

    #[test]
    fn an_unusable_journal_is_moved_aside_and_no_obstacle() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.redb");
        std::fs::write(&path, "not a database, but long enough to look at".repeat(999)).expect("writing");
        let (mut journal, state) = open(&path, "boot 1");
        assert_eq!(state, None);
        assert!(dir.path().join("journal.redb.unused").exists());
        journal.write(&"of another form", NO_NEW).expect("writing");
        drop(journal);
        assert_eq!(open(&path, "boot 1").1, None);
    }

    #[test]
    fn a_journal_of_another_boot_is_not_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.redb");
        open(&path, "boot 1").0.write(&vec![1_u32], NO_NEW).expect("writing");
        assert_eq!(open(&path, "boot 2").1, None);
        assert_eq!(open(&path, "boot 2").1, None);
    }
}
