//! What of the policy outlives the daemon: the policy file that was applied last, its mode, and the pins.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use conuma_policy::Mode;
use conuma_topology::VmName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const POLICY: &str = "policy.toml";
const FACTS: &str = "policy.json";
const PINS: &str = "pins.json";

/// Where a policy came from if not from a file that the daemon was told of at its start.
pub(super) const APPLIED: &str = "applied";

/// The files, in the directory of states.
#[derive(Debug, Clone)]
pub(super) struct PolicyFiles {
    dir: PathBuf,
}

/// The policy that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Kept {
    /// Its file; empty if none was applied.
    pub(super) text: String,
    pub(super) facts: Facts,
}

/// What is known of it besides its text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Whether decisions are made and carried out; what the file says if nobody switched it since.
    pub(super) mode: Option<Mode>,
    /// Where it came from.
    pub(super) source: Option<String>,
    /// When it was applied, in engine time.
    pub(super) applied: Option<Duration>,
    /// The text of the file that the daemon was told of at its start, as it was read last: it is applied when it changes, and
    /// not each time that the daemon starts.
    pub(super) read: Option<String>,
}

/// A pin as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptPin {
    pub(super) vm: VmName,
    /// In engine time.
    pub(super) until: Option<Duration>,
    pub(super) by: String,
    #[serde(default)]
    pub(super) transfer: Option<u64>,
}

impl PolicyFiles {
    pub(super) fn of(state: &Path) -> Self {
        Self { dir: state.to_owned() }
    }

    /// Where the policy in force is.
    pub(super) fn policy(&self) -> PathBuf {
        self.dir.join(POLICY)
    }

    /// What was kept. What cannot be read is said, and counts as not there.
    pub(super) fn read(&self) -> Kept {
        let text = match std::fs::read_to_string(self.policy()) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(file = %self.policy().display(), %error, "the policy cannot be read");
                }
                String::new()
            }
        };
        Kept { text, facts: self.json(FACTS).unwrap_or_default() }
    }

    pub(super) fn keep(&self, kept: &Kept) -> anyhow::Result<()> {
        let facts = serde_json::to_vec_pretty(&kept.facts).context("the policy's facts cannot be written as JSON")?;
        self.write(POLICY, kept.text.as_bytes())?;
        self.write(FACTS, &facts)
    }

    /// The pins that were kept.
    pub(super) fn pins(&self) -> Vec<KeptPin> {
        self.json(PINS).unwrap_or_default()
    }

    pub(super) fn keep_pins(&self, pins: &[KeptPin]) -> anyhow::Result<()> {
        self.write(PINS, &serde_json::to_vec_pretty(pins).context("pins cannot be written as JSON")?)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.dir.join(name);
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            read => read.context("reading").and_then(|bytes| serde_json::from_slice(&bytes).context("it is malformed")),
        };
        read.inspect_err(|error| tracing::error!(file = %path.display(), "not used: {error:#}")).ok()
    }

    /// Written whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let (path, fresh) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_what_is_broken_is_as_if_it_were_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = PolicyFiles::of(dir.path());
        assert_eq!((files.read(), files.pins()), (Kept::default(), Vec::new()));
        let facts = Facts {
            mode: Some(Mode::Advise),
            source: Some(APPLIED.into()),
            applied: Some(Duration::from_millis(1234)),
            read: None,
        };
        let kept = Kept { text: "mode = \"auto\"\n".into(), facts };
        files.keep(&kept).unwrap();
        let pin = KeptPin {
            vm: "a".parse().unwrap(),
            until: Some(Duration::from_secs(9)),
            by: "lend".into(),
            transfer: Some(3),
        };
        files.keep_pins(std::slice::from_ref(&pin)).unwrap();
        assert_eq!((files.read(), files.pins()), (kept.clone(), vec![pin]));
        std::fs::write(dir.path().join(FACTS), "{").unwrap();
        std::fs::write(dir.path().join(PINS), "nonsense").unwrap();
        assert_eq!(files.read(), Kept { facts: Facts::default(), ..kept });
        assert!(files.pins().is_empty());
    }
}
