//! Resources, demands, holders, the ledger.

use conuma_api as api;
use conuma_balancing::{
    CoreDemand, Demand, Engine, Holder, Ledger, Loan, MemoryDemand, Resources, TransferId, Violation,
};
use conuma_topology::Bytes;

use super::count;

pub(crate) fn resources(of: &Resources) -> api::Resources {
    api::Resources { cpus: of.cpus.clone(), memory: of.memory.clone() }
}

pub(crate) fn holder(of: &Holder) -> api::Holder {
    match of {
        Holder::Pool => api::Holder::Pool,
        Holder::Reserve => api::Holder::Reserve,
        Holder::Vm(vm) => api::Holder::Vm(vm.clone()),
        Holder::Transit(transfer) => api::Holder::Transit(transfer.0),
    }
}

pub(crate) fn demand(of: &Demand) -> api::Demand {
    api::Demand {
        cores: of.cores.as_ref().map(|cores| match cores {
            CoreDemand::Count(n) => api::CoreDemand::Count(count(*n)),
            CoreDemand::Cpus(cpus) => api::CoreDemand::Cpus(cpus.clone()),
        }),
        memory: of.memory.as_ref().map(|memory| match memory {
            MemoryDemand::Total(bytes) => api::MemoryDemand::Total(*bytes),
            MemoryDemand::PerNode(nodes) => api::MemoryDemand::PerNode(nodes.clone()),
        }),
    }
}

pub(super) fn engine_holder(of: api::Holder) -> Holder {
    match of {
        api::Holder::Pool => Holder::Pool,
        api::Holder::Reserve => Holder::Reserve,
        api::Holder::Vm(vm) => Holder::Vm(vm),
        api::Holder::Transit(id) => Holder::Transit(TransferId(id)),
    }
}

pub(super) fn engine_demand(of: api::Demand) -> Demand {
    Demand {
        cores: of.cores.map(|cores| match cores {
            api::CoreDemand::Count(n) => CoreDemand::Count(n as usize),
            api::CoreDemand::Cpus(cpus) => CoreDemand::Cpus(cpus),
        }),
        memory: of.memory.map(|memory| match memory {
            api::MemoryDemand::Total(bytes) => MemoryDemand::Total(bytes),
            api::MemoryDemand::PerNode(nodes) => MemoryDemand::PerNode(nodes),
        }),
    }
}

pub(crate) fn loan(of: &Loan) -> api::LoanInfo {
    api::LoanInfo { lender: of.lender.clone(), borrower: holder(&of.borrower), what: resources(&of.what) }
}

/// An invariant that does not hold; its code is the name of the kind.
pub(crate) fn violation(of: &Violation) -> api::ViolationInfo {
    api::ViolationInfo { code: super::moves::kind_of(of), message: of.to_string() }
}

pub(crate) fn ledger(engine: &Engine) -> api::LedgerInfo {
    let ledger = engine.ledger();
    let host = engine.host();
    let core_holder = |cpus: &conuma_topology::CpuSet| {
        ledger.accounts().find(|(_, held)| !held.cpus.is_disjoint(cpus)).map(|(found, _)| holder(&found))
    };
    let cores = host.cores.iter().filter_map(|(id, core)| {
        Some(api::CoreShare { core: *id, cpus: core.cpus.clone(), node: core.node, holder: core_holder(&core.cpus)? })
    });
    let nodes = host.memory.iter().map(|(node, capacity)| api::NodeShare {
        node: *node,
        capacity: *capacity,
        shares: shares(ledger, *node),
    });
    api::LedgerInfo {
        accounts: ledger
            .accounts()
            .map(|(who, held)| api::Account { holder: holder(&who), holds: resources(held) })
            .collect(),
        cores: cores.collect(),
        nodes: nodes.collect(),
        loans: engine.loans().iter().map(loan).collect(),
    }
}

fn shares(ledger: &Ledger, node: conuma_topology::NodeId) -> Vec<api::Share> {
    ledger
        .accounts()
        .map(|(who, held)| api::Share { holder: holder(&who), bytes: held.on(node) })
        .filter(|share| share.bytes > Bytes::ZERO)
        .collect()
}
