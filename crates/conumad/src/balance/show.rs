//! Why a VM holds what it holds.

use conuma_api::{Code, Problem, TermsInfo, VmWhy};
use conuma_policy::VmScene;
use conuma_topology::VmName;

use super::record::known;
use super::{Manager, Snapshot};
use crate::clock::unix_ms;
use crate::wire;
use crate::wire::decision;

impl Manager {
    /// What is believed of a VM, what holds for it, and what was decided about it last.
    pub(super) async fn why(&mut self, vm: &VmName) -> Result<VmWhy, Problem> {
        self.room.entry(vm)?;
        let snapshot = self.look().await.map_err(|stopped| wire::not_begun(&stopped.into()))?;
        self.learn(&snapshot);
        let Some(scene) = snapshot.vm(vm) else {
            return Err(Problem::new(Code::Refused, format!("VM {vm} is starting or has just ended"))
                .with_hint("try again in a moment"));
        };
        let made = self.last.clone().filter(|made| made.of(vm).is_some());
        let made = made.unwrap_or_else(|| self.decide(&snapshot));
        Ok(VmWhy {
            vm: vm.clone(),
            mode: self.api_mode(),
            terms: self.terms(scene, &snapshot),
            pin: self.pin_of(vm),
            estimate: self.balancer.estimate(vm, snapshot.now).map(decision::estimate),
            outlook: made.of(vm).map(|outlook| decision::outlook(outlook, &self.layout)),
            rejected: made.rejected.iter().filter(|rejected| rejected.vm == *vm).map(decision::rejected).collect(),
            decided_unix_ms: Some(unix_ms(made.at)),
            last_moved_by: self.moved.get(vm).and_then(known),
        })
    }

    fn terms(&self, vm: &VmScene, snapshot: &Snapshot) -> TermsInfo {
        let rules = self.balancer.rules();
        let local = snapshot.wall.local(rules.utc_offset);
        let said = rules.vms.get(&vm.name);
        let open = said.into_iter().flat_map(|said| &said.windows).filter(|(window, _)| window.contains(local));
        let windows = open.map(|(window, _)| window.to_string()).collect();
        decision::terms(&rules.terms(vm, snapshot.wall), said.is_some(), windows)
    }
}
