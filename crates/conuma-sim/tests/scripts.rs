//! Every script has the result that is checked in beside it, and the outcome that it expects. `CONUMA_REGENERATE=1` writes the results.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use conuma_sim::script::Script;

fn play(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let path = dir.join(name).with_extension("toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let played = Script::parse(&text, name).unwrap().play().unwrap();
    let found = played.render();
    let golden: PathBuf = path.with_extension("result");
    if std::env::var_os("CONUMA_REGENERATE").is_some() {
        std::fs::write(&golden, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(played.unexpected.is_empty(), "{found}");
    assert_eq!(found, expected, "{}: run again with CONUMA_REGENERATE=1 if that is right", golden.display());
}

#[test]
fn a_constant_load_comes_to_rest() {
    play("constant");
}

#[test]
fn a_burst_is_served_and_a_guarantee_comes_back() {
    play("burst");
}

#[test]
fn a_liar_gets_no_more_than_its_share() {
    play("liar");
}

#[test]
fn memory_goes_where_a_working_set_grows() {
    play("memory-growth");
}

#[test]
fn faults_break_no_invariant() {
    play("faults");
}

#[test]
fn a_big_host_is_divided() {
    play("big-host");
}
