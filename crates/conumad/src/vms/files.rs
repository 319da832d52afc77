//! A VM's files: what it was started from, and by what plan. A VM is one whose plan is there.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use conuma_binding::{BindingPlan, VmSpec};
use conuma_topology::VmName;

use crate::config::make_private_dir;

const SPEC: &str = "vm.toml";
const PLAN: &str = "plan.json";

/// The directory of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmFiles {
    dir: PathBuf,
}

/// What was kept of a VM.
pub(crate) struct Kept {
    pub(crate) spec: VmSpec,
    pub(crate) plan: BindingPlan,
}

impl VmFiles {
    pub(crate) fn of(vms: &Path, name: &VmName) -> Self {
        Self { dir: vms.join(name.as_str()) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps what a VM is about to be started from.
    pub(crate) fn keep(&self, spec: &str, plan: &BindingPlan) -> anyhow::Result<()> {
        make_private_dir(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        self.write(SPEC, spec.as_bytes())?;
        self.write(PLAN, &serde_json::to_vec_pretty(plan).context("the plan cannot be written as JSON")?)
    }

    /// What was kept; `None` if there is no VM here.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Kept>> {
        let plan = self.dir.join(PLAN);
        let text = match std::fs::read_to_string(&plan) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", plan.display()))?,
        };
        let plan = serde_json::from_str(&text).with_context(|| format!("{} is not understood", plan.display()))?;
        let spec = self.dir.join(SPEC);
        let text = std::fs::read_to_string(&spec).with_context(|| format!("cannot read {}", spec.display()))?;
        let spec = VmSpec::parse(&text, &spec.display().to_string())?;
        Ok(Some(Kept { spec, plan }))
    }

    /// Forgets the VM. What QEMU said stays until a VM of this name is started again.
    pub(crate) fn forget(&self) {
        for name in [PLAN, SPEC] {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %self.dir.join(name).display(), %error, "cannot be removed");
                }
                _ => {}
            }
        }
    }

    /// All VMs below `vms`; what is no name of a VM is passed over.
    pub(crate) fn all(vms: &Path) -> anyhow::Result<Vec<(VmName, Self)>> {
        let entries = std::fs::read_dir(vms).with_context(|| format!("cannot read {}", vms.display()))?;
        let mut all: Vec<(VmName, Self)> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(|name: VmName| (name.clone(), Self::of(vms, &name)))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    /// Written whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.dir.join(name);
        let fresh = self.dir.join(format!("{name}.new"));
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
