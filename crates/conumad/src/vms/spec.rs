//! From a VM file and its plan to what the engine must know.

use conuma_balancing::{CoreDemand, Demand, MemoryDemand, MemoryDevice, VmSpec};
use conuma_binding::{self as binding, BindingPlan, CoreWish, MemoryWish, Wish};

pub(super) fn engine_spec(spec: &binding::VmSpec, plan: &BindingPlan) -> VmSpec {
    let device = |max| MemoryDevice { max, block: plan.memory_unit };
    VmSpec {
        name: spec.name.clone(),
        guarantee: demand(&spec.guarantee),
        limit: spec.limit.as_ref().map(demand).unwrap_or_default(),
        initial: demand(&spec.initial_wish()),
        boot: plan.boot_memory(),
        agentless: spec.agent == binding::Agent::None,
        devices: plan
            .memory
            .iter()
            .filter(|node| node.is_flexible())
            .map(|node| (node.host, device(node.maximum)))
            .collect(),
    }
}

fn demand(wish: &Wish) -> Demand {
    Demand {
        cores: wish.cores.as_ref().map(|cores| match cores {
            CoreWish::Count(n) => CoreDemand::Count(*n),
            CoreWish::Cpus(cpus) => CoreDemand::Cpus(cpus.clone()),
        }),
        memory: wish.memory.as_ref().map(|memory| match memory {
            MemoryWish::Total(bytes) => MemoryDemand::Total(*bytes),
            MemoryWish::PerNode(nodes) => MemoryDemand::PerNode(nodes.clone()),
        }),
    }
}
