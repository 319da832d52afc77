//! Seeing whether vCPUs run.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_binding::BindingPlan;
use conuma_hypervisor::{HypervisorError, Vm};
use conuma_topology::{CpuSet, VcpuId};
use tokio::time::{Instant, sleep_until};

/// A vCPU that ran for more than this part of the time was not idle; less is a stray interrupt.
const BUSY_PART: u32 = 4;

/// A look at run times that has begun.
pub(crate) struct Watch<'a> {
    vm: &'a dyn Vm,
    plan: &'a BindingPlan,
    vcpus: Vec<VcpuId>,
    began: Instant,
    before: BTreeMap<VcpuId, Duration>,
}

impl<'a> Watch<'a> {
    /// Begins to watch the vCPUs of these CPUs.
    pub(crate) async fn begin(vm: &'a dyn Vm, plan: &'a BindingPlan, cpus: &CpuSet) -> Result<Self, HypervisorError> {
        let vcpus: Vec<VcpuId> = plan.replica.vcpus_on(cpus).iter().collect();
        Ok(Self { vm, plan, began: Instant::now(), before: vm.run_times(&vcpus).await?, vcpus })
    }

    /// Ends, `window` after the beginning at the earliest: the CPUs of vCPUs that ran meanwhile.
    pub(crate) async fn end(self, window: Duration) -> Result<CpuSet, HypervisorError> {
        sleep_until(self.began + window).await;
        let (lasted, after) = (self.began.elapsed(), self.vm.run_times(&self.vcpus).await?);
        let ran = |vcpu: &VcpuId| Some(after.get(vcpu)?.saturating_sub(*self.before.get(vcpu)?));
        let busy = self.vcpus.iter().filter(|vcpu| ran(vcpu).is_none_or(|ran| ran > lasted / BUSY_PART));
        Ok(self.plan.replica.cpus_of(&busy.copied().collect()))
    }
}
