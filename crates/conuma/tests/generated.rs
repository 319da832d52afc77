//! `docs/cli.md` and `docs/man` say what the program says.
//!
//! `CONUMA_REGENERATE=1 cargo test -p conuma --test generated` writes them anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const HOW: &str = "run CONUMA_REGENERATE=1 cargo test -p conuma --test generated";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn regenerate() -> bool {
    std::env::var_os("CONUMA_REGENERATE").is_some_and(|value| value == "1")
}

/// Writes `expected` or compares with it.
fn check(path: &Path, expected: &str) {
    if regenerate() {
        fs::create_dir_all(path.parent().expect("a file in docs")).expect("making the directory");
        fs::write(path, expected).expect("writing");
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{} is out of step: {HOW}", path.display());
}

#[test]
fn reference_is_in_step() {
    check(&docs().join("cli.md"), &conuma::reference::markdown());
}

#[test]
fn man_pages_are_in_step() {
    let made = tempfile::tempdir().expect("a temporary directory");
    let names: BTreeSet<String> = conuma::reference::man_pages(made.path()).expect("pages").into_iter().collect();
    let dir = docs().join("man");
    for name in &names {
        check(&dir.join(name), &fs::read_to_string(made.path().join(name)).expect("a page"));
    }
    let kept = fs::read_dir(&dir).expect("docs/man").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let stale: Vec<String> = kept.filter(|name| name.ends_with(".1") && !names.contains(name)).collect();
    if regenerate() {
        stale.iter().for_each(|name| fs::remove_file(dir.join(name)).expect("removing"));
    } else {
        assert!(stale.is_empty(), "{stale:?} have no command any more: {HOW}");
    }
}
