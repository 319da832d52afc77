//! The law of the rings, and a few more things that no lint knows.
//!
//! - A pure crate depends on pure crates and on outside crates that do no I/O.
//! - An adaptor crate depends on pure and adaptor crates.
//! - `unsafe` stands only where it is allowed, each block with its reason.
//! - A source file is one idea: at most [`HARD_LIMIT`] lines without its tests.
//! - ARCHITECTURE.md says of every outside dependency why it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::Table;

/// How far from the world a crate stands. A crate may depend on its own ring and on those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ring {
    Pure,
    Adaptor,
    Process,
}

const RINGS: [(&str, Ring); 15] = [
    ("conuma-topology", Ring::Pure),
    ("conuma-binding", Ring::Pure),
    ("conuma-balancing", Ring::Pure),
    ("conuma-policy", Ring::Pure),
    ("conuma-agent-proto", Ring::Pure),
    ("conuma-linux", Ring::Adaptor),
    ("conuma-hypervisor", Ring::Adaptor),
    ("conuma-history", Ring::Adaptor),
    ("conuma-api", Ring::Adaptor),
    ("conuma-agent", Ring::Process),
    ("conumad", Ring::Process),
    ("conuma", Ring::Process),
    ("conuma-sim", Ring::Process),
    ("conuma-lab", Ring::Process),
    ("xtask", Ring::Process),
];

/// Outside crates without I/O, clock or environment, as far as pure crates use them.
const PURE_OUTSIDE: [&str; 6] = ["bytes", "prost", "serde", "serde_json", "thiserror", "toml"];

/// The crates that may contain `unsafe`.
const UNSAFE_ALLOWED: [&str; 1] = ["conuma-linux"];

const HARD_LIMIT: usize = 1_200;
const SOFT_LIMIT: usize = 600;

/// Checks the whole workspace below `root`; every finding is printed before it fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let crates = workspace_crates(root)?;
    let mut findings = Vec::new();
    let mut outside = BTreeSet::new();
    for krate in &crates {
        krate.check_ring(&mut findings);
        outside.extend(krate.outside());
        for file in rust_files(&krate.dir)? {
            check_file(root, krate, &file, &mut findings)?;
        }
    }
    check_justified(root, &outside, &mut findings)?;
    for finding in &findings {
        println!("tidy: {finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} thing(s) to mend", findings.len());
    }
    Ok(())
}

struct Crate {
    name: String,
    dir: PathBuf,
    dependencies: BTreeSet<String>,
    dev_dependencies: BTreeSet<String>,
}

impl Crate {
    fn ring(&self) -> Option<Ring> {
        ring_of(&self.name)
    }

    fn check_ring(&self, findings: &mut Vec<String>) {
        let Some(ring) = self.ring() else {
            findings.push(format!("{} is in no ring: name it in xtask/src/tidy.rs", self.name));
            return;
        };
        for dependency in &self.dependencies {
            match ring_of(dependency) {
                Some(other) if other > ring => {
                    findings.push(format!("{} ({ring:?}) depends on {dependency} ({other:?})", self.name));
                }
                None if ring == Ring::Pure && !PURE_OUTSIDE.contains(&dependency.as_str()) => {
                    findings.push(format!("{} is pure, but depends on {dependency}", self.name));
                }
                _ => {}
            }
        }
    }

    fn outside(&self) -> impl Iterator<Item = String> + '_ {
        self.dependencies.union(&self.dev_dependencies).filter(|name| ring_of(name).is_none()).cloned()
    }
}

fn ring_of(name: &str) -> Option<Ring> {
    RINGS.iter().find(|(known, _)| *known == name).map(|(_, ring)| *ring)
}

fn workspace_crates(root: &Path) -> Result<Vec<Crate>> {
    let mut dirs: Vec<PathBuf> = fs::read_dir(root.join("crates"))?.flatten().map(|entry| entry.path()).collect();
    dirs.extend([root.join("lab"), root.join("xtask")]);
    dirs.sort();
    dirs.into_iter().filter(|dir| dir.join("Cargo.toml").exists()).map(read_crate).collect()
}

fn read_crate(dir: PathBuf) -> Result<Crate> {
    let path = dir.join("Cargo.toml");
    let manifest: Table = fs::read_to_string(&path)?.parse().with_context(|| format!("reading {}", path.display()))?;
    let name = manifest["package"]["name"].as_str().context("a package has a name")?.to_owned();
    let mut dependencies = keys(manifest.get("dependencies"));
    dependencies.extend(keys(manifest.get("build-dependencies")));
    for target in manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(Table::values) {
        dependencies.extend(keys(target.get("dependencies")));
    }
    Ok(Crate { name, dir, dependencies, dev_dependencies: keys(manifest.get("dev-dependencies")) })
}

fn keys(section: Option<&toml::Value>) -> BTreeSet<String> {
    section.and_then(toml::Value::as_table).map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn check_file(root: &Path, krate: &Crate, file: &Path, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let shown = file.strip_prefix(root).unwrap_or(file).display();
    let product: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    if product.len() > HARD_LIMIT {
        findings.push(format!("{shown} has {} lines; {HARD_LIMIT} is the limit", product.len()));
    } else if product.len() > SOFT_LIMIT {
        println!("tidy: note: {shown} has {} lines; {SOFT_LIMIT} are many for one idea", product.len());
    }
    let allowed = UNSAFE_ALLOWED.contains(&krate.name.as_str());
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if !["unsafe {", "unsafe fn", "unsafe impl", "= unsafe"].iter().any(|form| code.contains(form))
            || code.starts_with("//")
            || code.contains('"')
        {
            continue;
        }
        let reasoned = text.lines().skip(number.saturating_sub(6)).take(7).any(|near| near.contains("SAFETY:"));
        if !allowed {
            findings.push(format!("{shown}:{}: `unsafe` is only allowed in {UNSAFE_ALLOWED:?}", number + 1));
        } else if !reasoned {
            findings.push(format!("{shown}:{}: `unsafe` without a SAFETY note", number + 1));
        }
    }
    Ok(())
}

fn check_justified(root: &Path, outside: &BTreeSet<String>, findings: &mut Vec<String>) -> Result<()> {
    let path = root.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let named: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split_once('`')).collect();
    for name in outside.iter().filter(|name| !named.contains_key(name.as_str())) {
        findings.push(format!("ARCHITECTURE.md does not say why `{name}` is a dependency"));
    }
    Ok(())
}
