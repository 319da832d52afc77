//! Where things are.

use conuma_topology::VmName;

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
