//! Memory in a guest that a program of the lab's keeps.

use std::time::Duration;

use anyhow::{Result, ensure};
use conuma_topology::CpuId;

use crate::host::Look;
use crate::stage::Stage;

/// Memory in a guest that is kept until this is told to end.
pub(crate) struct Keeper {
    vm: &'static str,
    name: String,
}

impl Keeper {
    /// Keeps so many MiB, taken from the node of a CPU first if one is named; `how` is a word of the lab's hand.
    pub(crate) fn begin(stage: &Stage, vm: &'static str, near: Option<CpuId>, how: &str, mib: u64) -> Result<Self> {
        let name = format!("/run/kept-{how}");
        let near = near.map(|cpu| format!("taskset -c {cpu}")).unwrap_or_default();
        let script = format!(
            "rm -f {name}.code; ({near} conuma-lab-init keep {how} {mib} {name} 2>{name}.log; echo $? > {name}.code) \
             >/dev/null 2>&1 </dev/null &"
        );
        stage.lab.guest(vm, &script)?;
        stage.lab.until(&format!("{mib} MiB to be {how}"), Duration::from_secs(300), |lab| {
            let look =
                format!("if [ -e {name} ]; then echo kept; else cat {name}.code {name}.log 2>/dev/null; fi; true");
            let said = lab.guest(vm, &look)?;
            ensure!(said.trim() == "kept" || said.trim().is_empty(), "it could not be kept: {said}");
            Ok(if said.trim() == "kept" { Look::Done(()) } else { Look::NotYet("not yet".into()) })
        })?;
        Ok(Self { vm, name })
    }

    /// Lets go of it; an error if any of it has changed.
    pub(crate) fn end(self, stage: &Stage) -> Result<()> {
        let Self { vm, name } = self;
        stage.lab.guest(vm, &format!("rm -f {name}"))?;
        stage.lab.until("the keeper's last word", Duration::from_secs(120), |lab| {
            let code = lab.guest(vm, &format!("cat {name}.code 2>/dev/null; true"))?;
            if code.trim().is_empty() {
                return Ok(Look::NotYet("none".into()));
            }
            ensure!(code.trim() == "0", "exit code {code}: {}", lab.guest(vm, &format!("cat {name}.log"))?);
            Ok(Look::Done(()))
        })
    }
}
