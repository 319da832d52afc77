//! What a QEMU program was found to do, kept beside the VMs: a daemon that comes back takes charge of them without asking
//! again, which takes longer than all the rest of its start.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::facts::HypervisorFacts;

const FILE: &str = "qemu.json";

/// Which program it was: another one under its name has another size or another time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    path: PathBuf,
    bytes: u64,
    modified_ns: u128,
    /// Of the daemon: it may ask for more than an older one did.
    asked_by: String,
}

#[derive(Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    facts: HypervisorFacts,
}

impl Stamp {
    /// Of the program that would be run under this name.
    pub(super) fn of(program: &Path) -> Option<Self> {
        let path = match program.components().count() {
            1 => std::env::split_paths(&std::env::var_os("PATH")?)
                .map(|dir| dir.join(program))
                .find(|path| path.is_file())?,
            _ => program.to_owned(),
        };
        let metadata = path.metadata().ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let asked_by = env!("CARGO_PKG_VERSION").into();
        Some(Self { path, bytes: metadata.len(), modified_ns: modified.as_nanos(), asked_by })
    }

    /// What was found of exactly this program.
    pub(super) fn recall(&self, dir: &Path) -> Option<HypervisorFacts> {
        let known: Known = serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()?;
        (known.stamp == *self).then_some(known.facts)
    }

    /// Keeps what was found; if that fails it is asked again next time.
    pub(super) fn keep(self, facts: &HypervisorFacts, dir: &Path) {
        let known = Known { stamp: self, facts: facts.clone() };
        let written = serde_json::to_vec_pretty(&known).map(|text| std::fs::write(dir.join(FILE), text));
        if !matches!(written, Ok(Ok(()))) {
            tracing::debug!("what QEMU can do is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_under_the_same_name_is_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("qemu");
        std::fs::write(&program, "one").expect("writing");
        let stamp = Stamp::of(&program).expect("it is there");
        assert_eq!(stamp.recall(dir.path()), None);
        let facts = HypervisorFacts::qemu_10();
        stamp.clone().keep(&facts, dir.path());
        assert_eq!(stamp.recall(dir.path()), Some(facts));
        std::fs::write(&program, "another").expect("writing");
        assert_eq!(Stamp::of(&program).expect("it is there").recall(dir.path()), None);
        std::fs::write(dir.path().join(FILE), "{").expect("writing");
        assert_eq!(stamp.recall(dir.path()), None);
        assert_eq!(Stamp::of(Path::new("no-such-program")), None);
    }
}
