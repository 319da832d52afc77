//! The policy in force, the mode, and what people set by hand.

use std::time::Duration;

use conuma_api::{
    Code, EventKind, PinAnswer, PinInfo, PinOrder, PolicyApplied, PolicyCheck, PolicyInfo, PolicyProblem, PolicyText,
    Problem, TransferRequest,
};
use conuma_balancing::{TransferId, VmSpec};
use conuma_policy::rules::Problem as RulesProblem;
use conuma_policy::{Balancer, Mode, Pin, Rules, VmScene};
use conuma_topology::VmName;

use super::files::{APPLIED, Facts, Kept};
use super::newcomers::newcomer;
use super::pins::{BY_PIN, Meaning, Origin, meaning};
use super::{Cause, Manager, Snapshot};
use crate::clock::unix_ms;
use crate::core::{NotBegun, Stopped};
use crate::wire;

/// A policy has so many bytes at most: whoever may only look can have one checked, too.
const LONGEST: usize = 128 << 10;

fn not_too_long(text: &PolicyText) -> Result<(), Problem> {
    if text.text.len() <= LONGEST {
        return Ok(());
    }
    let message = format!("the policy has {} bytes, more than {LONGEST}", text.text.len());
    Err(Problem::new(Code::BadPolicy, message).with_hint("say only what differs from the VM files"))
}

/// How a policy is called that nobody named.
const NAMELESS: &str = "policy";

impl Manager {
    /// Goes on with what an earlier daemon kept, and with the file that this one was told of, if that has changed.
    pub(super) async fn resume(&mut self) -> Result<(), Stopped> {
        self.kept = self.files.read();
        self.resume_policy();
        if let Some(path) = self.room.settings.policy.clone() {
            match std::fs::read_to_string(&path) {
                Ok(text) if self.kept.facts.read.as_ref() == Some(&text) => {}
                Ok(text) => self.take_over(text, path.display().to_string()).await?,
                Err(error) => tracing::error!(file = %path.display(), %error, "the policy cannot be read"),
            }
        }
        self.resume_pins();
        Ok(())
    }

    /// Applies the file that the daemon was told of when it started, if it can hold here.
    async fn take_over(&mut self, text: String, name: String) -> Result<(), Stopped> {
        let snapshot = self.look().await?;
        let read = Rules::parse(&text, &name).map_err(|error| error.to_string()).and_then(|rules| {
            let concerns = self.concerns(&rules, &snapshot, None);
            if concerns.is_empty() { Ok(rules) } else { Err(format!("{name}: {}", concerns.join("; "))) }
        });
        let rules = match read {
            Ok(rules) => rules,
            Err(why) => {
                tracing::error!("the policy before stays in force:\n{why}");
                return Ok(());
            }
        };
        tracing::info!(file = name, mode = %wire::decision::mode(rules.mode), "policy applied");
        let facts = Facts {
            mode: Some(rules.mode),
            source: Some(name),
            applied: Some(self.room.clock.now()),
            read: Some(text.clone()),
        };
        self.kept = Kept { text, facts };
        self.balancer = Balancer::new(rules);
        if let Err(error) = self.files.keep(&self.kept) {
            tracing::error!("the policy holds, but not after a restart: {error:#}");
        }
        Ok(())
    }

    /// Goes on with the policy that an earlier daemon kept.
    fn resume_policy(&mut self) {
        if self.kept.text.is_empty() && self.kept.facts.applied.is_some() {
            tracing::error!(
                "the policy that was applied cannot be read any more, so nothing moves by itself; `conuma policy apply` it again"
            );
            self.balancer = Balancer::new(Rules::default());
            return;
        }
        let rules = match self.kept.text.is_empty() {
            // None was applied; its mode may have been switched all the same.
            true => Ok(Rules::default()),
            false => Rules::parse(&self.kept.text, &self.files.policy().display().to_string()),
        };
        match rules {
            Ok(rules) => {
                let mode = self.kept.facts.mode.unwrap_or(rules.mode);
                self.balancer = Balancer::new(Rules { mode, ..rules });
            }
            Err(error) => tracing::error!("no policy is in force, nothing moves by itself:\n{error}"),
        }
    }

    fn resume_pins(&mut self) {
        let entries = self.room.entries();
        let kept = self.files.pins().into_iter().filter(|pin| entries.contains_key(&pin.vm)).collect();
        drop(entries);
        self.origins.restore(kept, self.balancer.pins_mut());
    }

    pub(super) fn policy_info(&self) -> PolicyInfo {
        PolicyInfo {
            mode: self.api_mode(),
            text: self.kept.text.clone(),
            source: self.kept.facts.source.clone(),
            applied_at: self.kept.facts.applied.map(unix_ms),
            pins: self.balancer.pins().iter().map(|(vm, pin)| self.origins.info(vm, pin)).collect(),
            host_need: self.balancer.host_need().memory.clone(),
            host_need_cores: wire::count(self.balancer.host_need().cores),
        }
    }

    /// Whether a policy could be applied, and what it would change.
    pub(super) async fn check(&self, text: &PolicyText) -> Result<PolicyCheck, Problem> {
        not_too_long(text)?;
        let rules = match Rules::parse(&text.text, text.name.as_deref().unwrap_or(NAMELESS)) {
            Ok(rules) => rules,
            Err(error) => {
                let problems = error.problems.iter().map(problem).collect();
                return Ok(PolicyCheck { problems, ..PolicyCheck::default() });
            }
        };
        let snapshot = self.look().await.map_err(stopping)?;
        let concerns = self.concerns(&rules, &snapshot, None);
        let changes = changes(self.balancer.rules(), &rules);
        Ok(PolicyCheck { ok: concerns.is_empty(), problems: Vec::new(), concerns, changes })
    }

    /// Applies a policy. If anything is wrong with it, the one before stays.
    pub(super) async fn apply(&mut self, text: PolicyText) -> Result<PolicyApplied, Problem> {
        not_too_long(&text)?;
        let PolicyText { text, name } = text;
        let stays = "the policy before stays in force; `conuma policy check` tells all of it";
        let rules = Rules::parse(&text, name.as_deref().unwrap_or(NAMELESS))
            .map_err(|error| Problem::new(Code::BadPolicy, error.to_string()).with_hint(stays))?;
        let snapshot = self.look().await.map_err(stopping)?;
        let concerns = self.concerns(&rules, &snapshot, None);
        if !concerns.is_empty() {
            let message = format!("the policy cannot hold on this host: {}", concerns.join("; "));
            return Err(Problem::new(Code::Refused, message).with_hint(stays));
        }
        let changes = changes(self.balancer.rules(), &rules);
        let facts = Facts {
            mode: Some(rules.mode),
            source: Some(name.unwrap_or_else(|| APPLIED.into())),
            applied: Some(self.room.clock.now()),
            read: self.kept.facts.read.clone(),
        };
        let kept = Kept { text, facts };
        self.keep(&kept)?;
        self.kept = kept;
        self.take_rules(rules, changes.clone());
        Ok(PolicyApplied { changes, policy: self.policy_info() })
    }

    /// From now on decisions are made, or not, and carried out, or not.
    pub(super) async fn switch(&mut self, mode: Mode) -> Result<PolicyInfo, Problem> {
        if mode != self.mode() {
            let rules = Rules { mode, ..self.balancer.rules().clone() };
            let changes = changes(self.balancer.rules(), &rules);
            let facts = Facts { mode: Some(mode), ..self.kept.facts.clone() };
            let kept = Kept { facts, ..self.kept.clone() };
            self.keep(&kept)?;
            self.kept = kept;
            self.take_rules(rules, changes);
        }
        Ok(self.policy_info())
    }

    /// What would not be there after a restart is not put in force.
    fn keep(&self, kept: &Kept) -> Result<(), Problem> {
        self.files.keep(kept).map_err(|error| {
            Problem::new(Code::Internal, format!("the policy cannot be kept, so it is not put in force: {error:#}"))
                .with_hint("make room on the disk of the daemon's state directory")
        })
    }

    fn take_rules(&mut self, rules: Rules, changes: Vec<String>) {
        self.balancer.set_rules(rules);
        (self.idle, self.last) = (None, None);
        self.late.clear();
        tracing::info!(mode = %self.api_mode(), changes = changes.len(), "policy applied");
        self.room.bus.tell(EventKind::PolicyApplied { mode: self.api_mode(), changes });
        self.wake(Cause::Policy, Duration::ZERO);
    }

    /// Why a policy cannot hold for the VMs that run, and one that should start.
    fn concerns(&self, rules: &Rules, snapshot: &Snapshot, new: Option<VmScene>) -> Vec<String> {
        // What VM files say holds: the engine sees to that.
        if rules.vms.is_empty() {
            return Vec::new();
        }
        let starting = snapshot.starting.iter().map(|(spec, weight)| newcomer(spec.clone(), *weight));
        let vms: Vec<VmScene> = snapshot.vms.iter().cloned().chain(starting).chain(new).collect();
        rules.check(&self.host, &vms).iter().map(ToString::to_string).collect()
    }

    /// Whether the policy can hold beside a VM that should start.
    pub(super) async fn admits(&self, spec: VmSpec, weight: u32) -> Result<(), Problem> {
        let rules = self.balancer.rules();
        if rules.vms.is_empty() {
            return Ok(());
        }
        let mut snapshot = self.look().await.map_err(stopping)?;
        // Asked for twice, it is the engine that says so.
        snapshot.vms.retain(|vm| vm.name != spec.name);
        snapshot.starting.retain(|(starting, _)| starting.name != spec.name);
        let before = self.concerns(rules, &snapshot, None);
        let name = spec.name.clone();
        let mut concerns = self.concerns(rules, &snapshot, Some(newcomer(spec, weight)));
        // A CPU of the host may have been taken away since: that is no reason to refuse others.
        concerns.retain(|concern| !before.contains(concern));
        if concerns.is_empty() {
            return Ok(());
        }
        let message = format!("with VM {name} the policy cannot hold at all times: {}", concerns.join("; "));
        Err(Problem::new(Code::Refused, message).with_hint(
            "`conuma policy show` tells what is guaranteed; apply a policy that guarantees less, or stop a VM",
        ))
    }

    /// Leaves a VM as it is.
    pub(super) fn pin(&mut self, vm: &VmName, order: PinOrder) -> Result<PinAnswer, Problem> {
        self.room.entry(vm)?;
        let now = self.room.clock.now();
        let until = match (order.until_unix_ms, order.for_ms) {
            (Some(_), Some(_)) => {
                return Err(Problem::new(Code::BadRequest, "a pin has an end or a length, not both"));
            }
            (Some(until), None) => Some(Duration::from_millis(until)),
            (None, for_ms) => for_ms.map(|time| now.saturating_add(Duration::from_millis(time))),
        };
        if until.is_some_and(|until| until <= now) {
            return Err(Problem::new(Code::BadRequest, "the pin would have ended already")
                .with_hint("leave the end out to pin it until it is unpinned"));
        }
        let was_pinned = self.balancer.pins().holds(vm, now);
        self.set_pin(vm.clone(), until, Origin { by: BY_PIN, transfer: None });
        self.keep_pins();
        Ok(PinAnswer { pin: self.pin_of(vm), was_pinned })
    }

    /// Ends a pin.
    pub(super) fn unpin(&mut self, vm: &VmName) -> Result<PinAnswer, Problem> {
        self.room.entry(vm)?;
        let was_pinned = self.take_pin(vm);
        if was_pinned {
            self.keep_pins();
            self.wake(Cause::Pin, Duration::ZERO);
        }
        Ok(PinAnswer { pin: None, was_pinned })
    }

    /// Begins a transfer for people, and sees to it that the next decision does not undo it.
    pub(super) async fn order(
        &mut self,
        request: TransferRequest,
        pin_for: Option<Duration>,
    ) -> Result<TransferId, NotBegun> {
        let (of, asked) = (request.clone(), pin_for);
        // Where no policy is at work nothing would be undone.
        let asked = if self.mode() == Mode::Off { asked.or(Some(Duration::ZERO)) } else { asked };
        let means = self.room.core.look(move |engine, _| meaning(&of, asked, engine)).await?;
        let id = self.room.core.request(wire::engine_request(request)).await?;
        let now = self.room.clock.now();
        match means {
            Meaning::Pins(vms, by) => {
                let until = pin_for.map(|time| now.saturating_add(time));
                for vm in vms {
                    // One that was pinned by name stays so.
                    if !self.balancer.pins().holds(&vm, now) || self.origins.by(&vm) != Some(BY_PIN) {
                        self.set_pin(vm, until, Origin { by, transfer: Some(id.0) });
                    }
                }
                self.keep_pins();
            }
            Meaning::Ends(vms) => {
                let lent: Vec<VmName> = vms.into_iter().filter(|vm| self.origins.lent(vm)).collect();
                let ended = lent.iter().filter(|vm| self.take_pin(vm)).count();
                if ended > 0 {
                    self.keep_pins();
                }
            }
            Meaning::Nothing => {}
        }
        Ok(id)
    }

    /// Pins that have ended are over.
    pub(super) fn end_pins(&mut self, now: Duration) {
        let ended = self.balancer.pins_mut().expire(now);
        for vm in &ended {
            self.unpinned(vm);
        }
        if !ended.is_empty() {
            self.keep_pins();
        }
    }

    /// A VM is gone, and its pin with it.
    pub(super) fn drop_pin(&mut self, vm: &VmName) {
        if self.take_pin(vm) {
            self.keep_pins();
        }
    }

    /// A VM's pin.
    pub(super) fn pin_of(&self, vm: &VmName) -> Option<PinInfo> {
        let pin = self.balancer.pins().iter().find(|(pinned, _)| *pinned == vm);
        pin.map(|(vm, pin)| self.origins.info(vm, pin))
    }

    fn set_pin(&mut self, vm: VmName, until: Option<Duration>, origin: Origin) {
        self.balancer.pins_mut().pin(vm.clone(), Pin { until });
        self.origins.set(vm.clone(), origin);
        tracing::info!(%vm, "pinned");
        self.room.bus.tell(EventKind::VmPinned { vm, until_unix_ms: until.map(unix_ms) });
    }

    fn take_pin(&mut self, vm: &VmName) -> bool {
        let was_pinned = self.balancer.pins_mut().unpin(vm);
        if was_pinned {
            self.unpinned(vm);
        }
        was_pinned
    }

    fn unpinned(&mut self, vm: &VmName) {
        self.origins.forget(vm);
        tracing::info!(%vm, "unpinned");
        self.room.bus.tell(EventKind::VmUnpinned { vm: vm.clone() });
    }

    fn keep_pins(&self) {
        if let Err(error) = self.files.keep_pins(&self.origins.to_keep(self.balancer.pins())) {
            tracing::error!("pins hold, but not after a restart: {error:#}");
        }
    }
}

/// How policies differ, in the words of policy files.
fn changes(from: &Rules, to: &Rules) -> Vec<String> {
    from.diff(to).iter().map(ToString::to_string).collect()
}

fn problem(of: &RulesProblem) -> PolicyProblem {
    PolicyProblem {
        line: of.line.map_or(0, wire::count),
        column: of.column.map_or(0, wire::count),
        message: of.message.clone(),
        hint: of.hint.clone(),
        excerpt: of.excerpt.clone().unwrap_or_default(),
    }
}

fn stopping(stopped: Stopped) -> Problem {
    wire::not_begun(&stopped.into())
}
