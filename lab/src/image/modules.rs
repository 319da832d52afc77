//! Kernel modules for an image: the wanted ones with all that they need.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Cpio;

/// An unpacked kernel package.
pub(super) struct Kernel {
    dir: PathBuf,
    /// `uname -r` of it.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
}

impl Kernel {
    /// The one below `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let modules = dir.join("lib/modules");
        let entries = fs::read_dir(&modules).with_context(|| format!("no kernel below {}", dir.display()))?;
        let release = entries.flatten().next().context("an unpacked kernel has modules")?.file_name();
        let release = release.to_string_lossy().into_owned();
        Ok(Self { dir: dir.to_owned(), image: dir.join(format!("boot/vmlinuz-{release}")), release })
    }

    /// Adds modules, uncompressed, in the order in which they have to be loaded, and writes that order to
    /// `/lib/modules/load`. What is built into the kernel needs no file.
    pub(super) fn add_modules<W: Write>(&self, cpio: &mut Cpio<W>, wanted: &[&str]) -> Result<()> {
        let mut order: Vec<String> = Vec::new();
        for module in wanted {
            for path in self.needed(module)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let name = name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned();
                if !order.contains(&name) {
                    cpio.file(&format!("/lib/modules/{name}"), 0o644, &read_uncompressed(&path)?)?;
                    order.push(name);
                }
            }
        }
        Ok(cpio.file("/lib/modules/load", 0o644, format!("{}\n", order.join("\n")).as_bytes())?)
    }

    fn needed(&self, module: &str) -> Result<Vec<PathBuf>> {
        let output = Command::new("modprobe")
            .args(["--show-depends", "--dirname"])
            .arg(&self.dir)
            .args(["--set-version", &self.release, module])
            .output()
            .context("running modprobe")?;
        if !output.status.success() {
            bail!("kernel {} has no module {module}: {}", self.release, String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(|line| line.strip_prefix("insmod ")).map(|path| path.trim().into()).collect())
    }
}

fn read_uncompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(tool).arg("-dc").arg(path).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("running {tool}"))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}
