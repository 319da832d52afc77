//! Runs a program with no more than its systemd unit grants, so that every trial shows that it is enough: the unit's
//! capabilities, paths, system calls, address families and (no) namespaces. What else the unit restricts is not applied.

mod calls;
mod paths;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

const DAEMON: &str = include_str!("../../crates/conumad/packaging/conumad.service");
const AGENT: &str = include_str!("../../crates/conuma-agent/packaging/conuma-agent.service");

/// Becomes the program, which is `conumad` or `conuma-agent`.
pub fn confine(argv: &[String]) -> Result<()> {
    let (program, arguments) = argv.split_first().context("no program to run")?;
    let unit = match program.as_str() {
        "conumad" => DAEMON,
        "conuma-agent" => AGENT,
        other => bail!("{other} has no unit"),
    };
    let granted = granted(unit)?;
    let filters = calls::filters(unit)?;
    paths::protect(unit)?;
    for (name, capability) in CapabilitySet::all().iter_names() {
        if !granted.contains(capability) {
            remove_capability_from_bounding_set(capability).with_context(|| format!("giving up {name}"))?;
        }
    }
    set_no_new_privs(true)?;
    for filter in &filters {
        seccompiler::apply_filter(filter)?;
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
}

/// What a unit's line grants; every name must be one that is known.
fn granted(unit: &str) -> Result<CapabilitySet> {
    let names: Vec<&str> = words(unit, "CapabilityBoundingSet=").collect();
    ensure!(!names.is_empty(), "the unit does not bound capabilities");
    let one = |name: &str| {
        let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
        known.with_context(|| format!("{name} is no capability"))
    };
    names.into_iter().map(one).collect()
}

/// All words of a unit's lines that begin so.
fn words<'a>(unit: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    unit.lines().filter_map(move |line| line.strip_prefix(key)).flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_grant_few_capabilities_and_none_that_is_as_good_as_all() {
        for unit in [DAEMON, AGENT] {
            let granted = granted(unit).expect("a line");
            assert!(!granted.is_empty() && granted.bits().count_ones() <= 4, "{granted:?}");
            let as_good_as_all = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_MODULE | CapabilitySet::SYS_RAWIO;
            assert!(!granted.intersects(as_good_as_all), "{granted:?}");
        }
    }
}
