//! Which machine is meant: this one, a saved tree, a JSON file, or a text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use conuma_topology::Machine;

/// Reads the machine that `topology` names, or the one below `root` if it names none.
pub(crate) fn machine(topology: Option<&str>, root: &Path) -> anyhow::Result<Machine> {
    let Some(named) = topology else { return read_tree(root) };
    let path = Path::new(named);
    if path.is_dir() {
        return read_tree(&tree_in(path));
    }
    if path.is_file() {
        return read_json(path);
    }
    named.parse().with_context(|| format!("`{named}` is neither a directory nor a file, so it was read as a topology"))
}

fn read_tree(root: &Path) -> anyhow::Result<Machine> {
    conuma_linux::sysfs::read_machine(root).with_context(|| format!("cannot read the machine below {}", root.display()))
}

/// `dir` itself, or the one directory in it that has a `sys`, as archives of machines are packed.
fn tree_in(dir: &Path) -> PathBuf {
    let has_sys = |dir: &Path| dir.join("sys").is_dir();
    if has_sys(dir) {
        return dir.to_owned();
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut trees = entries.map(|entry| entry.path()).filter(|path| has_sys(path));
    match (trees.next(), trees.next()) {
        (Some(only), None) => only,
        _ => dir.to_owned(),
    }
}

fn read_json(path: &Path) -> anyhow::Result<Machine> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = || format!("{} is not the JSON of a machine", path.display());
    if text.first().is_some_and(|byte| *byte != b'{' && !byte.is_ascii_whitespace()) {
        bail!(
            "{} is not the JSON of a machine (unpack an archive first and name the directory; \
             `conuma topology --json` makes a JSON file)",
            path.display()
        );
    }
    let machine: Machine = serde_json::from_slice(&text).with_context(name)?;
    machine.validate().map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{} describes an impossible machine: {}", path.display(), problems.join("; "))
    })?;
    Ok(machine)
}
