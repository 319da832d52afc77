//! Seeing whether vCPUs run.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_binding::BindingPlan;
use conuma_hypervisor::{HypervisorError, Vm};
use conuma_topology::{CpuSet, VcpuId};
use tokio::time::{Instant, sleep_until};

/// A vCPU that ran for more than this part of the time runs on; less are stray interrupts, and what they wake. A guest
/// that comes back now and then is the brake's business.
const BUSY_PART: u32 = 2;

/// A look at run times that has begun.
pub(crate) struct Watch {
    began: Instant,
    before: BTreeMap<VcpuId, Duration>,
    vcpus: Vec<VcpuId>,
}

impl Watch {
    /// Begins to watch `vcpus`.
    pub(crate) async fn begin(vm: &dyn Vm, vcpus: Vec<VcpuId>) -> Result<Self, HypervisorError> {
        Ok(Self { began: Instant::now(), before: vm.run_times(&vcpus).await?, vcpus })
    }

    /// Ends, `window` after the beginning at the earliest: the CPUs of vCPUs that ran meanwhile.
    pub(crate) async fn end(
        self,
        vm: &dyn Vm,
        plan: &BindingPlan,
        window: Duration,
    ) -> Result<CpuSet, HypervisorError> {
        sleep_until(self.began + window).await;
        let (lasted, after) = (self.began.elapsed(), vm.run_times(&self.vcpus).await?);
        let ran = |vcpu: &VcpuId| Some(after.get(vcpu)?.saturating_sub(*self.before.get(vcpu)?));
        let busy = self.vcpus.iter().filter(|vcpu| ran(vcpu).is_none_or(|ran| ran > lasted / BUSY_PART));
        Ok(plan.replica.cpus_of(&busy.copied().collect()))
    }
}
