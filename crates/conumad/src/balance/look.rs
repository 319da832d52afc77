//! What a decision is made from: a look at the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conuma_balancing::{Host, Life, Report, Resources, TransferId, VmSpec};
use conuma_policy::{Layout, Scene, VmFacts, VmScene, WallTime, scene_of};
use conuma_topology::{CpuSet, VmName};

use crate::core::Stopped;
use crate::vms::{Entry, Room};

/// What a VM file says if it says nothing.
const USUAL_WEIGHT: u32 = 100;

/// The host and its VMs at one instant.
pub(super) struct Snapshot {
    /// Engine time.
    pub(super) now: Duration,
    /// What time of the week it is.
    pub(super) wall: WallTime,
    pub(super) offline: CpuSet,
    pub(super) pool: Resources,
    pub(super) vms: Vec<VmScene>,
    /// VMs that hold what they were admitted with, but do not run yet, and their weights.
    pub(super) starting: Vec<(VmSpec, u32)>,
    /// What each VM holds by the ledger, while transfers are under way.
    pub(super) held: BTreeMap<VmName, Resources>,
    /// VMs that could start with what nobody holds, of those that were asked about.
    pub(super) rooms: BTreeSet<VmName>,
    /// How the transfers stand that were asked about, as far as they are known.
    pub(super) reports: Vec<Report>,
}

impl Snapshot {
    /// Looks at the engine, and at these transfers.
    pub(super) async fn take(
        room: &Room,
        layout: &Arc<Layout>,
        transfers: Vec<TransferId>,
        newcomers: Vec<VmSpec>,
    ) -> Result<Self, Stopped> {
        let entries: BTreeMap<VmName, Arc<Entry>> = room.entries().clone();
        let layout = layout.clone();
        let wall = wall_time();
        let look = move |engine: &conuma_balancing::Engine, now: Duration| {
            let facts = |name: &VmName| entries.get(name).map_or_else(unknown, |entry| facts_of(entry));
            let scene = scene_of(engine, &layout, facts, wall);
            let views = engine.vms().into_iter().filter(|view| view.life == Life::Starting);
            let starting = views.map(|view| (facts(&view.spec.name).weight, view.spec));
            let starting = starting.map(|(weight, spec)| (spec, weight)).collect();
            let named = |spec: &VmSpec| spec.name.clone();
            let held = |vm: &VmScene| (vm.name.clone(), engine.ledger().vm(&vm.name).clone());
            Self {
                now,
                wall,
                held: scene.vms.iter().map(held).collect(),
                offline: scene.offline,
                pool: scene.pool,
                vms: scene.vms,
                starting,
                rooms: newcomers.iter().filter(|spec| engine.preview_start(spec).is_ok()).map(named).collect(),
                reports: transfers.iter().filter_map(|id| engine.report(*id)).collect(),
            }
        };
        room.core.look(look).await
    }

    /// As the policy sees it.
    pub(super) fn scene<'a>(&self, host: &'a Host, layout: &'a Layout) -> Scene<'a> {
        Scene {
            host,
            layout,
            offline: self.offline.clone(),
            pool: self.pool.clone(),
            vms: self.vms.clone(),
            wall: self.wall,
        }
    }

    /// A VM that runs.
    pub(super) fn vm(&self, name: &VmName) -> Option<&VmScene> {
        self.vms.iter().find(|vm| vm.name == *name)
    }
}

/// What is known of a VM besides what the engine knows.
fn facts_of(entry: &Entry) -> VmFacts {
    VmFacts { weight: entry.spec.weight, homes: entry.plan.device_homes().iter().collect() }
}

fn unknown() -> VmFacts {
    VmFacts { weight: USUAL_WEIGHT, homes: Default::default() }
}

/// The wall clock, which may be set while the daemon runs: windows follow it.
fn wall_time() -> WallTime {
    WallTime::of_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
