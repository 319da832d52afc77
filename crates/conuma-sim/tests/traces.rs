//! The shipped traces are what the generator makes and what their pages say, and ours does on them as promised.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use conuma_sim::compare::{POLICIES, compare};
use conuma_sim::render;
use conuma_sim::trace::Trace;
use conuma_sim::trace::generate::generate;
use conuma_sim::trace::shipped::SHIPPED;
use conuma_sim::world::Options;

/// The seed that they were made with.
const SEED: u64 = 1;

fn dir() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("traces")
}

#[test]
fn shipped_traces_are_what_the_generator_makes() {
    for (name, text) in SHIPPED {
        let made = generate(name.parse().unwrap(), SEED).unwrap();
        if std::env::var_os("CONUMA_REGENERATE").is_some() {
            std::fs::write(dir().join(name).with_extension("csv"), made.to_csv()).unwrap();
        } else {
            assert_eq!(Trace::parse(text, name).unwrap(), made, "{name}");
        }
    }
}

#[test]
fn their_pages_state_their_statistics() {
    for (name, _) in SHIPPED {
        let path = dir().join(format!("{name}.md"));
        let page = std::fs::read_to_string(&path).unwrap();
        let stats = render::stats(&generate(name.parse().unwrap(), SEED).unwrap().stats());
        let (before, rest) = page.split_once("```text\n").unwrap();
        let (stated, after) = rest.split_once("```").unwrap();
        if std::env::var_os("CONUMA_REGENERATE").is_some() {
            std::fs::write(&path, format!("{before}```text\n{stats}```{after}")).unwrap();
        } else {
            assert_eq!(stated, stats, "{name}");
        }
    }
}

#[test]
fn what_is_written_reads_back_as_the_same() {
    for (name, _) in SHIPPED {
        let trace = generate(name.parse().unwrap(), 7).unwrap();
        assert_eq!(Trace::parse(&trace.to_csv(), name).unwrap(), trace);
    }
}

#[test]
fn ours_does_as_promised_on_the_shipped_traces() {
    for (name, text) in SHIPPED {
        // Half an hour: the whole hour is for `conuma-sim compare --check`.
        let trace = Trace::parse(text, name).unwrap().cut(Duration::from_secs(1800));
        let comparison = compare(&trace, None, &POLICIES, 0.3, &Options::default()).unwrap();
        assert!(comparison.verdict.unwrap().kept, "{}", render::comparison(&comparison));
        let oracle = comparison.outcomes.last().unwrap();
        assert!(
            oracle.policy == "oracle" && oracle.useful > 0.99 * comparison.bound,
            "{}: {oracle:#?}",
            comparison.bound
        );
    }
}
