//! Where things are.

use conuma_topology::VmName;

use crate::types::HistoryQuery;

/// What every path begins with. A change that breaks clients gets a new one beside it.
pub const VERSION_PREFIX: &str = "/v1";

/// The paths of the API.
#[derive(Debug, Clone, Copy)]
pub struct Paths;

impl Paths {
    /// The machine, its reserve and who holds what.
    pub const HOST: &'static str = "/v1/host";
    /// Who holds what.
    pub const LEDGER: &'static str = "/v1/ledger";
    /// The invariants against reality.
    pub const CHECK: &'static str = "/v1/check";
    /// All VMs.
    pub const VMS: &'static str = "/v1/vms";
    /// All transfers.
    pub const TRANSFERS: &'static str = "/v1/transfers";
    /// The policy in force.
    pub const POLICY: &'static str = "/v1/policy";
    /// Whether a policy could be applied.
    pub const POLICY_CHECK: &'static str = "/v1/policy/check";
    /// Whether decisions are made and carried out.
    pub const POLICY_MODE: &'static str = "/v1/policy/mode";
    /// What would be decided now.
    pub const PLAN_REBALANCE: &'static str = "/v1/plan/rebalance";
    /// Where a decision is made and carried out once.
    pub const REBALANCE: &'static str = "/v1/rebalance";
    /// The decisions that were made.
    pub const HISTORY: &'static str = "/v1/history";
    /// What happens, as server-sent events.
    pub const EVENTS: &'static str = "/v1/events";
    /// The description of the API.
    pub const OPENAPI: &'static str = "/v1/openapi.json";

    /// One VM. Names need no escaping in a path.
    pub fn vm(name: &VmName) -> String {
        format!("{}/{name}", Self::VMS)
    }

    /// Where a VM is let go of.
    pub fn release(name: &VmName) -> String {
        format!("{}/{name}/release", Self::VMS)
    }

    /// Why a VM holds what it holds.
    pub fn why(name: &VmName) -> String {
        format!("{}/{name}/why", Self::VMS)
    }

    /// Where a VM is pinned.
    pub fn pin(name: &VmName) -> String {
        format!("{}/{name}/pin", Self::VMS)
    }

    /// One decision.
    pub fn decision(id: u64) -> String {
        format!("{}/{id}", Self::HISTORY)
    }

    /// Decisions.
    pub fn history(query: &HistoryQuery) -> String {
        let HistoryQuery { vm, since_ms, until_ms, state, before, limit } = query;
        let parts = [
            vm.as_ref().map(|vm| format!("vm={vm}")),
            since_ms.map(|ms| format!("since_ms={ms}")),
            until_ms.map(|ms| format!("until_ms={ms}")),
            state.map(|state| format!("state={state}")),
            before.map(|id| format!("before={id}")),
            limit.map(|limit| format!("limit={limit}")),
        ];
        let query: Vec<String> = parts.into_iter().flatten().collect();
        if query.is_empty() { Self::HISTORY.to_owned() } else { format!("{}?{}", Self::HISTORY, query.join("&")) }
    }

    /// What happens; with a name only what concerns this VM, with kinds only those.
    pub fn events(vm: Option<&VmName>, kinds: &[&str]) -> String {
        let vm = vm.map(|vm| format!("vm={vm}"));
        let kinds = (!kinds.is_empty()).then(|| format!("kind={}", kinds.join(",")));
        let query: Vec<String> = vm.into_iter().chain(kinds).collect();
        if query.is_empty() { Self::EVENTS.to_owned() } else { format!("{}?{}", Self::EVENTS, query.join("&")) }
    }

    /// One transfer.
    pub fn transfer(id: u64) -> String {
        format!("{}/{id}", Self::TRANSFERS)
    }
}
