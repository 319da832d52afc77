//! The distribution's packages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::distribution::Distribution;
use crate::run;

/// The file of the apt source that is added where it is missing.
const SOURCE_FILE: &str = "/etc/apt/sources.list.d/conuma-backports.sources";
/// Debian's own keys, where no existing source names others.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Not a question, and patience with another package manager at work.
const APT_OPTIONS: [&str; 6] = ["-y", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"];

/// Package lists are made up to date once, and only before something is fetched.
#[derive(Debug)]
pub(crate) struct Apt {
    pub(crate) distribution: Distribution,
    /// For files that are made aside.
    scratch: PathBuf,
    is_root: bool,
    updated: bool,
}

impl Apt {
    /// Nothing is changed yet.
    pub(crate) fn new(distribution: Distribution, scratch: &Path) -> Result<Self> {
        if !distribution.tested() {
            println!("setup: note: this was tested on Debian 12, not on {}", distribution.name());
        }
        let is_root = fs::metadata("/proc/self").context("cannot see who runs this")?.uid() == 0;
        Ok(Self { distribution, scratch: scratch.to_owned(), is_root, updated: false })
    }

    /// Installs packages; `recent` ones come from the backports where the distribution has such.
    pub(crate) fn install(&mut self, packages: &[&str], recent: bool) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let suite = self.prepare(recent)?;
        let began = Instant::now();
        println!("setup: installing {} ...", packages.join(" "));
        let mut command = self.as_root("apt-get")?;
        command.arg("install").args(APT_OPTIONS).arg("--no-install-recommends");
        command.args(from(suite)).args(packages);
        run::output(&mut command)?;
        println!("setup: installed in {:.0} s", began.elapsed().as_secs_f32());
        Ok(())
    }

    /// Makes the package lists ready for the backports (`recent`) or the release itself, and gives the suite to name to apt.
    pub(crate) fn prepare(&mut self, recent: bool) -> Result<Option<&'static str>> {
        let release = self.distribution.release();
        let backports = self.distribution.backports();
        if recent
            && let Some(backports) = backports
            && targets(backports)?.is_empty()
        {
            self.add_source(release, backports)?;
        }
        if !self.updated {
            println!("setup: updating the package lists ...");
            run::output(self.as_root("apt-get")?.arg("update").args(APT_OPTIONS))?;
            self.updated = true;
        }
        // Without backports, updates of the release are as good as the release.
        Ok(backports.map(|backports| if recent { backports } else { release }))
    }

    /// What the package `meta`, which is empty, stands for: the first of its dependencies that begins with `prefix`.
    pub(crate) fn resolve(&self, meta: &str, prefix: &str, suite: Option<&str>) -> Result<String> {
        let text = run::output(program("apt-cache").arg("depends").args(from(suite)).arg(meta))?;
        first_dependency(&text, prefix)
            .with_context(|| format!("the package {meta} stands for no {prefix}*: apt-cache depends says\n{text}"))
    }

    /// Whether there is such a package.
    pub(crate) fn knows(&self, package: &str) -> bool {
        run::output(program("apt-cache").args(["show", "--no-all-versions", package]))
            .is_ok_and(|text| !text.is_empty())
    }

    /// Puts the files of packages below `tree`; nothing is installed.
    pub(crate) fn unpack(&self, packages: &[String], suite: Option<&str>, archives: &Path, tree: &Path) -> Result<()> {
        let mut download = program("apt-get");
        download.current_dir(archives).args(["download", "-q"]);
        if self.is_root {
            // Else apt would try as a user that may not write here, and complain.
            download.args(["-o", "APT::Sandbox::User=root"]);
        }
        run::output(download.args(from(suite)).args(packages))?;
        for entry in fs::read_dir(archives)? {
            let archive = entry?.path();
            run::output(program("dpkg").arg("-x").arg(&archive).arg(tree))?;
            fs::remove_file(&archive)?;
        }
        Ok(())
    }

    fn add_source(&mut self, release: &str, backports: &str) -> Result<()> {
        let known = targets(release)?;
        let Some(target) = known.first() else {
            bail!(
                "no apt source has {release} main: cannot tell where {backports} is; add a source for it and try again"
            );
        };
        let keys = match &target.entry {
            Some(file) => signed_by(&fs::read_to_string(file).unwrap_or_default()),
            None => None,
        };
        let keys = keys.or_else(|| Path::new(DEBIAN_KEYS).exists().then(|| DEBIAN_KEYS.to_owned()));
        let text = source(&target.uri, backports, keys.as_deref());
        println!("setup: adding the apt source {SOURCE_FILE}:");
        text.lines().for_each(|line| println!("setup:   {line}"));
        let aside = self.scratch.join("backports.sources");
        fs::write(&aside, text).with_context(|| format!("cannot write {}", aside.display()))?;
        run::output(self.as_root("install")?.args(["-m", "644"]).arg(&aside).arg(SOURCE_FILE))?;
        self.updated = false;
        Ok(fs::remove_file(aside)?)
    }

    fn as_root(&self, name: &str) -> Result<Command> {
        let settings = ["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"];
        if self.is_root {
            let mut command = run::program("env");
            command.args(settings).arg(name);
            return Ok(command);
        }
        if run::find("sudo").is_none() {
            bail!("installing needs root, and there is no sudo here: run `cargo xtask setup` as root once");
        }
        let mut command = run::program("sudo");
        command.arg("env").args(settings).arg(name);
        Ok(command)
    }
}

/// A program of apt or dpkg, in English, as its output is read.
fn program(name: &str) -> Command {
    let mut command = run::program(name);
    command.env("LC_ALL", "C");
    command
}

fn from(suite: Option<&str>) -> impl Iterator<Item = &str> {
    suite.into_iter().flat_map(|suite| ["-t", suite])
}

/// An apt source with the component main, as apt itself understands its files.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    uri: String,
    /// The file that has it.
    entry: Option<PathBuf>,
}

/// Those of a suite.
fn targets(suite: &str) -> Result<Vec<Target>> {
    let mut command = program("apt-get");
    command.arg("indextargets").args(["Created-By: Packages", "Component: main"]).arg(format!("Release: {suite}"));
    Ok(parse_targets(&run::output(&mut command)?))
}

fn parse_targets(text: &str) -> Vec<Target> {
    let target = |stanza: &str| {
        let value = |key: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .map(|value| value.trim().to_owned())
        };
        let entry = value("Sourcesentry").and_then(|entry| Some(PathBuf::from(entry.rsplit_once(':')?.0)));
        Some(Target { uri: value("Repo-URI")?, entry })
    };
    text.split("\n\n").filter_map(target).collect()
}

/// The file of keys that a source names, in either form of source files. Keys written into the source itself are not found.
fn signed_by(source: &str) -> Option<String> {
    let paragraphs = source.lines().filter_map(|line| line.strip_prefix("Signed-By:"));
    let options = source.split([' ', '\t', '[', ']', '\n']).filter_map(|word| word.strip_prefix("signed-by="));
    paragraphs.chain(options).map(str::trim).find(|value| value.starts_with('/')).map(str::to_owned)
}

fn source(uri: &str, suite: &str, keys: Option<&str>) -> String {
    let keys = keys.map(|keys| format!("Signed-By: {keys}\n")).unwrap_or_default();
    format!(
        "# Added by Conuma's `cargo xtask setup`.\nTypes: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{keys}"
    )
}

fn first_dependency(text: &str, prefix: &str) -> Option<String> {
    let dependencies = text.lines().filter_map(|line| line.trim_start_matches([' ', '|']).strip_prefix("Depends: "));
    dependencies.map(str::trim).find(|name| name.starts_with(prefix)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_from_what_apt_says() {
        let text = "MetaKey: main/binary-amd64/Packages\nRepo-URI: http://mirror.example/debian/\n\
                    Sourcesentry: /etc/apt/sources.list.d/debian.sources:1\n\nMetaKey: x\nRepo-URI: file:/srv/debian/\n";
        let expected = [
            Target {
                uri: "http://mirror.example/debian/".into(),
                entry: Some("/etc/apt/sources.list.d/debian.sources".into()),
            },
            Target { uri: "file:/srv/debian/".into(), entry: None },
        ];
        assert_eq!(parse_targets(text), expected);
        assert_eq!(parse_targets(""), []);
    }

    #[test]
    fn keys_are_found_in_both_forms_of_sources() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(signed_by(text).as_deref(), expected, "{text}");
        check("Types: deb\nSigned-By: /usr/share/keyrings/a.gpg\n", Some("/usr/share/keyrings/a.gpg"));
        check(
            "deb [arch=amd64 signed-by=/etc/keys/b.gpg] http://mirror.example/debian bookworm main",
            Some("/etc/keys/b.gpg"),
        );
        check("deb http://mirror.example/debian bookworm main", None);
        check("Types: deb\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n", None);
    }

    #[test]
    fn added_sources_are_paragraphs() {
        let text = source("http://mirror.example/debian/", "bookworm-backports", Some("/keys.gpg"));
        assert!(text.ends_with(
            "Types: deb\nURIs: http://mirror.example/debian/\nSuites: bookworm-backports\nComponents: main\nSigned-By: /keys.gpg\n"
        ));
        assert!(!source("http://mirror.example/", "x", None).contains("Signed-By"));
    }

    #[test]
    fn meta_packages_stand_for_images() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(first_dependency(text, "linux-image-").as_deref(), expected, "{text}");
        };
        check(
            "linux-image-amd64\n  Depends: linux-image-6.12.95+deb12-amd64\n",
            Some("linux-image-6.12.95+deb12-amd64"),
        );
        check(
            "linux-image-generic\n  Depends: linux-firmware\n |Depends: linux-image-6.8.0-1-generic\n  Depends: <x>\n",
            Some("linux-image-6.8.0-1-generic"),
        );
        check("linux-image-amd64\n", None);
    }
}
