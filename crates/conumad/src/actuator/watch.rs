//! Seeing whether vCPUs run.
//!
//! The kernel counts a thread's run time when it stops and at ticks, which can be 10 ms apart. So a vCPU that seems to have
//! stood still but is not asleep at the end is looked at again: one that just handled an interrupt is asleep by then, of one
//! that runs on the time has been counted.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_binding::BindingPlan;
use conuma_hypervisor::{HypervisorError, Vm};
use conuma_topology::{CpuSet, VcpuId, VcpuSet};
use tokio::time::{Instant, sleep, sleep_until};

/// A vCPU that ran for more than this part of the time was not idle; less is a stray interrupt.
const BUSY_PART: u32 = 4;
/// Between looks at one that is not asleep.
const AGAIN: Duration = Duration::from_millis(3);
/// One that is not asleep at so many looks in a row runs on, whatever has been counted: by then there was a tick.
const LOOKS: u32 = 6;

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
        let mut busy = self.ran(&self.vcpus).await?;
        let mut awake = self.vm.runnable(&not_in(&busy, &self.vcpus)).await?;
        for _ in 1..LOOKS {
            if awake.is_empty() {
                return Ok(self.plan.replica.cpus_of(&busy));
            }
            sleep(AGAIN).await;
            let doubtful: Vec<VcpuId> = awake.iter().collect();
            busy = busy.union(&self.ran(&doubtful).await?);
            awake = self.vm.runnable(&not_in(&busy, &doubtful)).await?;
        }
        Ok(self.plan.replica.cpus_of(&busy.union(&awake)))
    }

    /// Those of which enough time was counted.
    async fn ran(&self, vcpus: &[VcpuId]) -> Result<VcpuSet, HypervisorError> {
        let (lasted, after) = (self.began.elapsed(), self.vm.run_times(vcpus).await?);
        let ran = |vcpu: &VcpuId| Some(after.get(vcpu)?.saturating_sub(*self.before.get(vcpu)?));
        let busy = vcpus.iter().filter(|vcpu| ran(vcpu).is_none_or(|ran| ran > lasted / BUSY_PART));
        Ok(busy.copied().collect())
    }
}

fn not_in(busy: &VcpuSet, vcpus: &[VcpuId]) -> Vec<VcpuId> {
    vcpus.iter().filter(|vcpu| !busy.contains(**vcpu)).copied().collect()
}
