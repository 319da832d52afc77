//! The journal: what the engine knew, on disk before it is acted on.
//!
//! Two files below the state directory. `journal.json` is the state, a line of JSON for each step that changed it: the last
//! whole line counts. A step costs one write at the end of an open file, as it is in the path of every transfer; when the
//! file has grown long it is begun anew. `history.json` holds the transfers that have ended, and is replaced as a whole. A
//! daemon that is killed while it writes leaves a line without an end, or an old file: what it had not written it had not
//! done.
//!
//! They must survive the daemon, not the host: when the host goes down every VM goes with it, and a journal of VMs
//! that are no more is worth nothing. So a write goes to the page cache and is not synced, and a journal names the boot it
//! belongs to: one of another boot is moved aside unread. So is one that cannot be read, with a warning; what is lost then
//! are loans and transfers under way, while who holds what is found again on the host itself.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Changes when a file of an older daemon would be misunderstood.
const FORMAT: u32 = 2;
const STATE: &str = "journal.json";
const HISTORY: &str = "history.json";
/// The journal is begun anew when it has this many bytes, or this many times its last line.
const LONG: (u64, u64) = (1 << 20, 16);

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    boot: String,
    last: Vec<u8>,
    log: Option<Log>,
}

/// The file that lines are added to.
#[derive(Debug)]
struct Log {
    file: File,
    bytes: u64,
}

impl Log {
    /// Not if somebody has removed it, or put another in its place.
    fn is_there(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }
}

/// What a file, or a line of it, holds.
#[derive(Serialize, Deserialize)]
struct Page<B, C> {
    format: u32,
    boot: B,
    content: C,
}

impl Journal {
    /// Opens the journal in the directory `dir`, and gives the state and the history that are in it, if they are there
    /// of this boot and can be read. Fails only if what cannot be used cannot be moved aside.
    pub fn open<S, H>(dir: &Path, boot: &str) -> anyhow::Result<(Self, Option<S>, Option<H>)>
    where
        S: DeserializeOwned,
        H: DeserializeOwned,
    {
        let this = Self { dir: dir.to_owned(), boot: boot.to_owned(), last: Vec::new(), log: None };
        let state = this.load(STATE, "loans and transfers are forgotten, holdings are read from the host")?;
        let history = this.load(HISTORY, "transfers that have ended are forgotten")?;
        if state.is_none() && history.is_some() {
            // Numbers of transfers begin anew: those of the past must not come back under them.
            this.set_aside(HISTORY)?;
            return Ok((this, None, None));
        }
        Ok((this, state, history))
    }

    /// Writes `state`, unless it is what was written last, and `history` before it where there is a new one: a transfer
    /// that ends is never in neither. A history that cannot be written is no failure, as it is only shown to people; tells
    /// whether it was written.
    pub fn write<S: Serialize, H: Serialize>(&mut self, state: &S, history: Option<&H>) -> anyhow::Result<bool> {
        let told = match history.map(|history| self.page(history).and_then(|page| self.replace(HISTORY, &page))) {
            Some(Err(error)) => {
                tracing::debug!("transfers that have ended are not kept: {error:#}");
                false
            }
            Some(Ok(_)) | None => true,
        };
        let page = self.page(state)?;
        if page != self.last {
            self.add(&page)?;
            self.last = page;
        }
        Ok(told)
    }

    fn page<C: Serialize>(&self, content: &C) -> anyhow::Result<Vec<u8>> {
        let page = Page { format: FORMAT, boot: self.boot.as_str(), content };
        let mut line = serde_json::to_vec(&page).context("it cannot be written as JSON")?;
        line.push(b'\n');
        Ok(line)
    }

    /// Adds a line to the log; if that fails, the next goes to a new one.
    fn add(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let length = line.len() as u64;
        if let Some(mut log) = self.log.take().filter(|log| log.is_there() && log.bytes < LONG.0.max(LONG.1 * length)) {
            if let Err(error) = log.file.write_all(line) {
                // The rest of a line would not be taken for one; without it a person reads more easily.
                let _ = log.file.set_len(log.bytes);
                return Err(error).with_context(|| format!("cannot write {}", self.dir.join(STATE).display()));
            }
            self.log = Some(Log { bytes: log.bytes + length, ..log });
            return Ok(());
        }
        let file = self.replace(STATE, line)?;
        self.log = Some(Log { file, bytes: length });
        Ok(())
    }

    /// Puts a file in the place of another; gives it, open at its end.
    fn replace(&self, name: &str, page: &[u8]) -> anyhow::Result<File> {
        let path = self.dir.join(name);
        let new = path.with_extension("new");
        let written = File::create(&new).and_then(|mut file| file.write_all(page).map(|()| file));
        let file = written.with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("cannot replace {}", path.display()))?;
        Ok(file)
    }

    fn load<C: DeserializeOwned>(&self, name: &str, loss: &str) -> anyhow::Result<Option<C>> {
        let path = self.dir.join(name);
        let content = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(anyhow::Error::from).and_then(|text| self.content(last_line(&text))),
        };
        match content {
            Ok(content) => Ok(Some(content)),
            Err(error) => {
                let aside = self.set_aside(name)?;
                tracing::warn!(file = %path.display(), moved_to = %aside.display(), "it is not used: {error:#}; {loss}");
                Ok(None)
            }
        }
    }

    fn set_aside(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        let aside = path.with_extension("unused");
        std::fs::rename(&path, &aside).with_context(|| format!("cannot move the unusable {} aside", path.display()))?;
        Ok(aside)
    }

    fn content<C: DeserializeOwned>(&self, page: &[u8]) -> anyhow::Result<C> {
        // First without the content, which another format may have otherwise.
        let Page { format, boot, content: serde::de::IgnoredAny } =
            serde_json::from_slice::<Page<String, _>>(page).context("it cannot be read")?;
        if format != FORMAT {
            bail!("it is of format {format}, not {FORMAT}");
        }
        if boot != self.boot {
            bail!("it is of an earlier boot of this host");
        }
        Ok(serde_json::from_slice::<Page<String, C>>(page).context("it cannot be read")?.content)
    }
}

/// The last line that has an end; where no line has one, the whole text.
fn last_line(text: &[u8]) -> &[u8] {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return text };
    let begin = text[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
    &text[begin..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Vec<u32>;

    const NO_NEW: Option<&Numbers> = None;

    fn open(dir: &Path, boot: &str) -> (Journal, Option<Numbers>, Option<Numbers>) {
        Journal::open(dir, boot).expect("a journal")
    }

    fn kept(dir: &Path, boot: &str) -> (Option<Numbers>, Option<Numbers>) {
        let (_, state, history) = open(dir, boot);
        (state, history)
    }

    #[test]
    fn what_was_written_last_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut journal, state, history) = open(dir.path(), "boot 1");
        assert_eq!((state, history), (None, None));
        for state in [vec![1], vec![1, 2], vec![1, 2]] {
            journal.write(&state, NO_NEW).expect("writing");
        }
        assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![1, 2]), None));
        journal.write(&vec![1, 2], Some(&vec![7])).expect("writing");
        journal.write(&vec![3], NO_NEW).expect("writing");
        assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![3]), Some(vec![7])));
    }

    #[test]
    fn a_daemon_that_is_killed_while_it_writes_leaves_what_it_wrote_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = open(dir.path(), "boot 1").0;
        journal.write(&vec![7_u32], NO_NEW).expect("writing");
        journal.write(&vec![8_u32], NO_NEW).expect("writing");
        let path = dir.path().join(STATE);
        let whole = std::fs::read(&path).expect("reading");
        let second = whole.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        for length in second..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("writing");
            assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![7]), None), "{length} bytes");
        }
        std::fs::write(&path, &whole).expect("writing");
        std::fs::write(path.with_extension("new"), "{\"format\":2,\"bo").expect("writing");
        assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![8]), None));
    }

    #[test]
    fn a_long_journal_is_begun_anew_and_is_never_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = open(dir.path(), "boot 1").0;
        let state = |round: u32| vec![round; 20_000];
        let mut longest = 0;
        for round in 100_000..100_100 {
            journal.write(&state(round), NO_NEW).expect("writing");
            longest = longest.max(std::fs::metadata(dir.path().join(STATE)).expect("a file").len());
            if round % 10 == 0 {
                assert_eq!(kept(dir.path(), "boot 1").0, Some(state(round)));
            }
        }
        assert!(longest > 1 << 20 && longest < 4 << 20, "{longest} bytes");
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_an_error_and_the_next_write_makes_up_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = open(dir.path(), "boot 1").0;
        let obstacle = dir.path().join("journal.new");
        std::fs::create_dir(&obstacle).expect("a directory in the way");
        assert!(journal.write(&vec![1_u32], NO_NEW).is_err());
        assert_eq!(kept(dir.path(), "boot 1").0, None);
        std::fs::remove_dir(&obstacle).expect("removing it");
        journal.write(&vec![1_u32], NO_NEW).expect("writing");
        assert_eq!(kept(dir.path(), "boot 1").0, Some(vec![1]));
        std::fs::create_dir(dir.path().join("history.new")).expect("a directory in the way");
        assert!(!journal.write(&vec![2_u32], Some(&vec![9_u32])).expect("the state is written"));
        assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![2]), None), "a state does not wait for the history");
    }

    #[test]
    fn a_journal_that_somebody_removes_is_written_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = open(dir.path(), "boot 1").0;
        journal.write(&vec![1_u32], NO_NEW).expect("writing");
        std::fs::remove_file(dir.path().join(STATE)).expect("removing it");
        journal.write(&vec![2_u32], NO_NEW).expect("writing");
        assert_eq!(kept(dir.path(), "boot 1").0, Some(vec![2]));
    }

    #[test]
    fn a_history_without_its_state_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        open(dir.path(), "boot 1").0.write(&vec![1_u32], Some(&vec![2_u32])).expect("writing");
        std::fs::remove_file(dir.path().join(STATE)).expect("removing it");
        assert_eq!(kept(dir.path(), "boot 1"), (None, None));
        open(dir.path(), "boot 1").0.write(&vec![3_u32], NO_NEW).expect("writing");
        assert_eq!(kept(dir.path(), "boot 1"), (Some(vec![3]), None));
    }

    #[test]
    fn an_unusable_journal_is_moved_aside_and_no_obstacle() {
        let older = r#"{"format":1,"boot":"boot 1","content":"of another kind"}"#;
        for page in ["not JSON", "{\"format\":2,\"boot\":\"boot 1\",\"content\":[1,", older] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join(STATE);
            std::fs::write(&path, page).expect("writing");
            let (mut journal, state, _) = open(dir.path(), "boot 1");
            assert_eq!(state, None, "{page}");
            assert_eq!(std::fs::read_to_string(path.with_extension("unused")).expect("moved aside"), page);
            journal.write(&vec![4_u32], NO_NEW).expect("writing");
            assert_eq!(kept(dir.path(), "boot 1").0, Some(vec![4]));
        }
    }

    #[test]
    fn a_journal_of_another_boot_is_not_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        open(dir.path(), "boot 1").0.write(&vec![1_u32], Some(&vec![2_u32])).expect("writing");
        assert_eq!(kept(dir.path(), "boot 2"), (None, None));
        assert_eq!(kept(dir.path(), "boot 1"), (None, None));
    }
}
