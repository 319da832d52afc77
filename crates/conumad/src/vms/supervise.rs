//! Watching one VM: its process, its agent, what its guest reports, where its memory really is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use conuma_agent_proto::{AgentError, GuestFacts, Reply, Report, RequestBody};
use conuma_api::{EventKind, ViolationInfo};
use conuma_balancing::Event;
use conuma_binding::BindingPlan;
use conuma_hypervisor::{HypervisorError, MemoryState, RunState, Vm, VmEvent};
use conuma_topology::{Bytes, NodeId};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::view::vm_state;
use super::{Entry, Phase, Room, Running};
use crate::actuator::chain;
use crate::agent::{AskError, LinkEvent, LinkState};
use crate::config::Triggers;
use crate::guest::fixed;

/// Memory of QEMU itself (its program, its heap, page tables' copies) that an audit lets pass on each node.
pub(crate) const QEMU_SLACK: Bytes = Bytes::mib(256);

/// Between attempts to end a QEMU that does not end.
const END_AGAIN: Duration = Duration::from_secs(1);

impl Room {
    pub(super) async fn supervise(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        running: &Arc<Running>,
        mut events: broadcast::Receiver<VmEvent>,
        mut link: mpsc::Receiver<LinkEvent>,
        stop: CancellationToken,
    ) {
        let mut reports = interval(self.settings.report);
        let mut audits = interval(self.settings.audit);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        audits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pressure = self.pressure.subscribe();
        // One of each at a time: a guest that does not answer must not pile up questions.
        let (mut report, mut audit) = (None, None);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = running.vm.ended() => break,
                Some(event) = link.recv() => {
                    // A report that came by itself is no reason to ask for one.
                    let ask = !matches!(event, LinkEvent::Pressed { .. });
                    self.link_changed(entry, running, event).await;
                    if ask {
                        reports.reset_immediately();
                    }
                }
                event = events.recv() => self.vm_event(entry, running, event).await,
                Ok(()) = pressure.changed() => self.have_watched(entry, running),
                _ = reports.tick() => again(&mut report, || {
                    let (room, entry, running) = (self.clone(), entry.clone(), running.clone());
                    async move {
                        // Not every change of such a state is told by an event.
                        if running.guest.get() != Some(RunState::Running) {
                            room.note_guest(&entry, &running).await;
                        }
                        room.ask_report(&entry, &running).await;
                    }
                }),
                _ = audits.tick() => again(&mut audit, || {
                    let (room, entry, running) = (self.clone(), entry.clone(), running.clone());
                    async move { room.audit(&entry, &running).await }
                }),
            }
        }
        stop.cancel();
        if !self.end(&entry.plan, running.vm.as_ref()).await {
            return;
        }
        let why = match running.is_stopping() {
            true => "it was stopped".to_owned(),
            false => format!("its QEMU ended; {} has what it said", entry.plan.files.log.display()),
        };
        tracing::info!(vm = %entry.plan.name, why, "VM ended");
        self.gone(entry, why);
    }

    /// Ends QEMU for sure: nothing of the VM is free before it is dead. Only a daemon that stops gives up, and says so.
    pub(super) async fn end(&self, plan: &BindingPlan, vm: &dyn Vm) -> bool {
        while let Err(error) = vm.end(self.settings.step).await {
            tracing::error!(vm = %plan.name, "QEMU does not end, its resources stay booked: {}", chain(&error));
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = sleep(END_AGAIN) => {}
            }
        }
        true
    }

    async fn link_changed(self: &Arc<Self>, entry: &Arc<Entry>, running: &Arc<Running>, event: LinkEvent) {
        let vm = entry.plan.name.clone();
        match event {
            LinkEvent::Connected(facts) => {
                if running.speaks() {
                    tracing::info!(%vm, kernel = %facts.kernel_release, agent = %facts.agent_version, "agent connected");
                }
                // A new conversation watches nothing.
                if *self.pressure.borrow() {
                    self.have_watched(entry, running);
                }
                self.first_baseline(entry, running, &facts).await;
                let holding = facts.holding.as_ref().map(|cpus| entry.plan.replica.host_cpus(cpus));
                if holding.is_some() {
                    running.excuses.told(Instant::now());
                }
                self.core.happened(Event::AgentConnected { vm: vm.clone(), newest: facts.newest.0, holding });
                self.bus.tell(EventKind::AgentConnected { vm });
            }
            LinkEvent::Lost(why) => {
                if running.speaks() {
                    tracing::info!(%vm, why, "agent lost");
                }
                self.core.happened(Event::AgentLost { vm: vm.clone() });
                self.bus.tell(EventKind::AgentLost { vm, why });
            }
            LinkEvent::Pressed { resource, report, dropped } => {
                if dropped > 0 && running.speaks() {
                    tracing::warn!(%vm, dropped, "its agent reports unasked without end: most of it is passed over");
                }
                tracing::debug!(%vm, ?resource, "a guest is short of something");
                // Nobody knows what was plugged while it was made.
                self.reported(entry, running, report, Duration::ZERO, |_| None);
                self.pressed.notify_one();
            }
        }
    }

    /// Has the agent report at once when its guest is short of something, or no more, as the balancing manager wants it. The
    /// answer is waited for elsewhere: nothing hangs on it.
    fn have_watched(self: &Arc<Self>, entry: &Arc<Entry>, running: &Arc<Running>) {
        let (room, entry, running) = (self.clone(), entry.clone(), running.clone());
        tokio::spawn(async move {
            let wanted = || *room.pressure.borrow();
            loop {
                let told = wanted();
                room.watch(&entry, &running, told).await;
                if told == wanted() {
                    break;
                }
            }
        });
    }

    /// Tells the agent what to watch. One that cannot is asked for reports only.
    async fn watch(&self, entry: &Entry, running: &Running, wanted: bool) {
        let vm = &entry.plan.name;
        let Triggers { cpu, memory } = self.settings.triggers;
        let body = RequestBody::Watch { cpu: wanted.then_some(cpu), memory: wanted.then_some(memory) };
        let answered = match running.link.ask(0, self.settings.step, body).await {
            Ok(asked) => asked.answer().await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(Reply::Watching { cpu, memory }) => tracing::debug!(%vm, ?cpu, ?memory, "the agent watches pressure"),
            Ok(_) => tracing::debug!(%vm, "the agent answered something that was not asked"),
            Err(AskError::Unreachable) => {}
            Err(AskError::Agent(AgentError::BadRequest(_))) => tracing::debug!(%vm, "an agent without pushes"),
            Err(error) => tracing::debug!(%vm, %error, "its pressure is not watched"),
        }
    }

    /// First word on what the guest's nodes have without plugged memory. Off by what is on the move just now,
    /// until the first report at rest corrects it; that makes a confirmation late or early, never the ledger wrong.
    async fn first_baseline(&self, entry: &Entry, running: &Running, facts: &GuestFacts) {
        let sizes = sizes(entry, running).await;
        for node in &facts.nodes {
            if let Some(host) = entry.plan.replica.host_node(node.node) {
                let plugged = sizes.get(&host).map_or(Bytes::ZERO, |state| state.size);
                running.baseline.set(host, node.memory.saturating_sub(plugged));
            }
        }
    }

    async fn vm_event(&self, entry: &Entry, running: &Running, event: Result<VmEvent, broadcast::error::RecvError>) {
        let vm = entry.plan.name.clone();
        match event {
            Ok(VmEvent::Reset) => {
                if running.speaks() {
                    tracing::info!(%vm, "guest was reset");
                }
                *running.reports() = Default::default();
                running.excuses.boots(Instant::now());
                self.core.happened(Event::VmReset { vm: vm.clone() });
                self.bus.tell(EventKind::VmReset { vm });
            }
            Ok(VmEvent::Stopped) => {
                tracing::info!(%vm, "guest shut down or panicked");
                self.end(&entry.plan, running.vm.as_ref()).await;
            }
            Ok(VmEvent::MemoryChanged) => {
                running.excuses.size_changed(Instant::now());
                self.core.happened(Event::SizeChanged { vm });
            }
            // The first is also what QEMU says when the guest cannot go on.
            Ok(VmEvent::Paused | VmEvent::Resumed | VmEvent::Migration) => self.note_guest(entry, running).await,
            Ok(VmEvent::Missed(missed)) | Err(broadcast::error::RecvError::Lagged(missed)) => {
                if running.speaks() {
                    tracing::warn!(%vm, missed, "events of QEMU were missed");
                }
                running.reset_missed.store(true, Ordering::Relaxed);
                running.excuses.boots(Instant::now());
                // An agent that is connected is lost by a reset: the engine learns of it by that.
                if running.link.status().state != LinkState::Connected {
                    self.core.happened(Event::VmReset { vm });
                }
                self.note_guest(entry, running).await;
            }
            // Its end is noticed by the process.
            Err(broadcast::error::RecvError::Closed) => {
                self.stop.run_until_cancelled(running.vm.ended()).await;
            }
        }
    }

    /// Asks whether the guest runs, and tells if that is news. One that cannot go on, or was migrated away, keeps its memory, as its
    /// QEMU lives and might let it run again: a person has to decide.
    pub(super) async fn look_at_guest(&self, entry: &Entry, running: &Running) -> Result<RunState, HypervisorError> {
        let (state, news) = running.guest.learn(running.vm.run_state()).await?;
        if news {
            self.guest_changed(entry, running, state);
        }
        Ok(state)
    }

    /// As above; a VM that has ended, or whose QEMU does not answer, is noticed elsewhere.
    async fn note_guest(&self, entry: &Entry, running: &Running) {
        if let Err(error) = self.look_at_guest(entry, running).await {
            tracing::debug!(vm = %entry.plan.name, "whether its guest runs is not known: {}", chain(&error));
        }
    }

    fn guest_changed(&self, entry: &Entry, running: &Running, state: RunState) {
        let vm = entry.plan.name.clone();
        match state {
            RunState::Stopped => {
                tracing::warn!(%vm, "the guest cannot go on, and keeps what it holds: `conuma stop {vm} --force` ends it");
            }
            RunState::Migrated => {
                tracing::warn!(%vm, "the guest was migrated away; its VM here keeps its memory: `conuma stop {vm}` ends it");
            }
            _ if running.speaks() => tracing::info!(%vm, ?state, "the guest changed its state"),
            _ => {}
        }
        self.core.happened(Event::MemoryFixed { vm: vm.clone(), fixed: fixed(state) });
        if let Some(state) = vm_state(state) {
            self.bus.tell(EventKind::VmChanged { vm, state });
        }
    }

    async fn ask_report(&self, entry: &Entry, running: &Running) {
        if running.link.status().state != LinkState::Connected {
            return;
        }
        let vm = &entry.plan.name;
        let reset_missed = running.reset_missed.load(Ordering::Relaxed);
        let before = sizes(entry, running).await;
        let asked_at = self.clock.now();
        let asked = running.link.ask(0, self.settings.step, RequestBody::Report).await;
        let answered = match asked {
            Ok(asked) => asked.answer().await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(Reply::Report(report)) => {
                // Asked after the reset that may have been: the guest is back, or was never away.
                if reset_missed {
                    running.reset_missed.store(false, Ordering::Relaxed);
                    running.excuses.told(Instant::now());
                }
                let after = sizes(entry, running).await;
                let age = self.clock.now().saturating_sub(asked_at);
                self.reported(entry, running, Arc::new(report), age, |node| {
                    let at_rest = |state: &&MemoryState| state.requested == state.size;
                    after
                        .get(&node)
                        .filter(at_rest)
                        .filter(|state| before.get(&node) == Some(state))
                        .map(|state| state.size)
                });
            }
            Ok(_) => tracing::debug!(%vm, "the agent answered something that was not asked"),
            Err(AskError::Unreachable) => {}
            Err(error) => tracing::debug!(%vm, %error, "no report"),
        }
    }

    /// Keeps a report that was asked for so long ago; `at_rest` is what was plugged on a node all the time while it was made.
    fn reported(
        &self,
        entry: &Entry,
        running: &Running,
        report: Arc<Report>,
        age: Duration,
        at_rest: impl Fn(NodeId) -> Option<Bytes>,
    ) {
        let mut free = BTreeMap::new();
        for node in &report.nodes {
            let Some(host) = entry.plan.replica.host_node(node.node) else { continue };
            free.insert(host, node.free);
            if let Some(plugged) = at_rest(host) {
                running.baseline.set(host, node.total.saturating_sub(plugged));
            }
        }
        self.core.happened(Event::GuestMemory { vm: entry.plan.name.clone(), free, age });
        running.reports().keep(report, self.clock.now());
    }

    /// Holds where the pages of QEMU are against what the VM holds.
    async fn audit(&self, entry: &Entry, running: &Running) {
        if !matches!(*entry.phase.borrow(), Phase::Running(_)) {
            return;
        }
        let beyond = match self.beyond_holding(entry, running).await {
            Ok(beyond) => beyond,
            Err(why) => {
                if running.speaks() {
                    tracing::warn!(vm = %entry.plan.name, "its memory cannot be audited: {why}");
                }
                return;
            }
        };
        self.core.happened(Event::MemoryAudited { vm: entry.plan.name.clone(), trespasses: !beyond.is_empty() });
        for violation in beyond {
            tracing::warn!(vm = %entry.plan.name, violation = %violation.message, "audit");
            self.bus.tell(EventKind::Violated(violation));
        }
    }

    /// Nodes on which the QEMU process has more pages than the VM holds; an error says why that is not known.
    pub(crate) async fn beyond_holding(&self, entry: &Entry, running: &Running) -> Result<Vec<ViolationInfo>, String> {
        let held = async || {
            let name = entry.plan.name.clone();
            self.core.look(move |engine, _| engine.ledger().vm(&name).clone()).await.map_err(|e| e.to_string())
        };
        // Pages are counted one mapping after the other, while memory may come or go.
        let before = held().await?;
        let resident = running.vm.memory_by_node().await.map_err(|error| chain(&error))?;
        let held = held().await?;
        let beyond = |(node, bytes): (NodeId, Bytes)| {
            let excess = bytes.saturating_sub(held.on(node).max(before.on(node)) + QEMU_SLACK);
            (!excess.is_zero()).then(|| ViolationInfo {
                code: "memory-beyond-holding".into(),
                message: format!(
                    "{}: {bytes} of its pages are on node {node}, of which it holds {} (and {QEMU_SLACK} of slack for QEMU)",
                    entry.plan.name,
                    held.on(node)
                ),
            })
        };
        Ok(resident.into_iter().filter_map(beyond).collect())
    }
}

/// Sizes of the virtio-mem devices that can be read now, by host node.
pub(super) async fn sizes(entry: &Entry, running: &Running) -> BTreeMap<NodeId, MemoryState> {
    let mut sizes = BTreeMap::new();
    for node in entry.plan.memory.iter().filter(|node| node.is_flexible()) {
        if let Ok(state) = running.vm.memory(node.host).await {
            sizes.insert(node.host, state);
        }
    }
    sizes
}

/// Starts it again unless it still runs from the last time.
fn again<F>(slot: &mut Option<tokio::task::JoinHandle<()>>, work: impl FnOnce() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    if slot.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
        *slot = Some(tokio::spawn(work()));
    }
}
