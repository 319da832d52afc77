//! Holdings against a fake kernel: what is cut, what is refused, what comes back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use conuma_agent::cgroups::REST;
use conuma_agent::holding::{Depth, Holder};
use conuma_agent_proto::{AgentError, Generation, HoldingOutcome, RefusalReason, TaskKind};
use conuma_topology::GuestCpuSet;
use fake::{FakeGuest, Kind, guest, set};
use proptest::prelude::*;
use tempfile::TempDir;

const NEW: &str = "6.12.95+deb12-cloud-amd64";
const OLD: &str = "6.1.0-44-cloud-amd64";

struct Run {
    guest: Arc<FakeGuest>,
    holder: Holder,
    dir: TempDir,
}

fn run(guest: Arc<FakeGuest>) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Holder::open(guest.clone(), dir.path()).unwrap();
    holder.settle().unwrap();
    Run { guest, holder, dir }
}

impl Run {
    /// As the agent does: what is left for after the answer is done, too.
    fn apply(&mut self, cpus: &str) -> HoldingOutcome {
        let outcome = self.try_apply(cpus).unwrap();
        self.holder.finish().unwrap();
        outcome
    }

    fn try_apply(&mut self, cpus: &str) -> Result<HoldingOutcome, AgentError> {
        let generation = Generation(self.holder.newest().0 + 1);
        self.holder.apply(generation, &set(cpus), Instant::now() + Duration::from_secs(1))
    }

    fn restart(&mut self) {
        self.holder = Holder::open(self.guest.clone(), self.dir.path()).unwrap();
        self.holder.settle().unwrap();
    }
}

#[track_caller]
fn expect(outcome: &HoldingOutcome, held: &str, quiesced: &str, refused: &[(&str, RefusalReason)]) {
    assert_eq!(outcome.held.to_string(), held, "held");
    assert_eq!(outcome.quiesced.to_string(), quiesced, "quiesced");
    let got: Vec<(String, RefusalReason)> =
        outcome.refused.iter().map(|refusal| (refusal.cpus.to_string(), refusal.reason.clone())).collect();
    let refused: Vec<(String, RefusalReason)> =
        refused.iter().map(|(cpus, reason)| ((*cpus).to_owned(), reason.clone())).collect();
    assert_eq!(got, refused, "refused");
}

#[test]
fn everything_leaves_and_comes_back() {
    let mut run = run(guest(NEW));
    let before = run.guest.masks();
    let outcome = run.apply("0-3");
    expect(&outcome, "0-3", "4-7", &[]);
    assert!(run.guest.users_outside(&set("0-3")).is_empty());
    assert_eq!(run.guest.cpuset("system.slice"), "0-3");
    assert_eq!(run.guest.mask(2), "0-3", "a kernel thread that can be moved");
    assert_eq!(run.guest.text("proc/irq/24/smp_affinity_list"), "0-3");
    assert_eq!(run.guest.text("proc/irq/25/smp_affinity_list"), "0-3", "nothing of its wish is left");
    assert_eq!(run.guest.text("proc/irq/26/smp_affinity_list"), "7", "managed by the kernel");
    assert_eq!(run.guest.text("proc/irq/default_smp_affinity"), "f");
    assert_eq!(run.guest.text("sys/devices/virtual/workqueue/cpumask"), "f");
    assert!(outcome.leftovers.tasks.is_empty());
    assert_eq!(outcome.leftovers.managed_interrupts, 1);
    assert_eq!(outcome.leftovers.bound_kernel_threads, 1);
    expect(&run.apply("0-7"), "0-7", "", &[]);
    assert_eq!(run.guest.masks(), before);
}

#[test]
fn what_is_given_can_be_used_before_everything_has_spread_to_it() {
    let mut run = run(guest(OLD));
    run.guest.wish(200, "6");
    run.apply("0-3");
    assert_eq!(run.guest.mask(200), "0-3");
    let outcome = run.try_apply("0-7").unwrap();
    expect(&outcome, "0-7", "", &[]);
    assert_eq!((run.guest.mask(100), run.guest.mask(200)), ("0-7".into(), "6".into()));
    assert_eq!(run.guest.text("sys/devices/virtual/workqueue/cpumask"), "f");
    run.holder.finish().unwrap();
    assert_eq!(run.guest.text("sys/devices/virtual/workqueue/cpumask"), "ff");
    // A holding that shrinks again before that moves everything but the kernel's own work, which it does not wait for.
    run.try_apply("0-3").unwrap();
    run.try_apply("0-5").unwrap();
    run.try_apply("0-1").unwrap();
    assert_eq!(run.guest.text("proc/irq/24/smp_affinity_list"), "0-1");
    run.holder.finish().unwrap();
    assert_eq!(run.guest.text("sys/devices/virtual/workqueue/cpumask"), "3");
}

#[test]
fn kernel_threads_follow_after_the_answer() {
    let mut run = run(guest(NEW));
    run.try_apply("0-3").unwrap();
    assert!(run.guest.users_outside(&set("0-3")).is_empty());
    assert_eq!(run.guest.mask(2), "0-7");
    run.holder.finish().unwrap();
    assert_eq!(run.guest.mask(2), "0-3");
    run.restart();
    run.apply("0-7");
    assert_eq!(run.guest.mask(2), "0-7", "what was written is remembered");
}

#[test]
fn interrupts_that_fire_on_cpus_that_leave_move_at_once_and_others_after_the_answer() {
    let mut run = run(guest(NEW));
    let mask = |run: &Run, irq: u32| run.guest.text(&format!("proc/irq/{irq}/smp_affinity_list"));
    run.try_apply("0-3").unwrap();
    assert_eq!((mask(&run, 25), mask(&run, 27)), ("0-3".into(), "0-7".into()));
    run.holder.finish().unwrap();
    assert_eq!(mask(&run, 27), "0-3");
    run.try_apply("2-3").unwrap();
    assert_eq!(mask(&run, 27), "2-3", "it fires on CPU 1");
    run.apply("0-7");
    // The kernel moved it, as it does when a CPU goes offline.
    run.guest.put("proc/irq/27/effective_affinity_list", "3\n");
    run.try_apply("2-3").unwrap();
    assert_eq!(mask(&run, 27), "0-7", "it fires on CPU 3 now");
    assert_eq!(mask(&run, 28), "0-7", "nobody uses it");
    run.holder.finish().unwrap();
    assert_eq!((mask(&run, 27), mask(&run, 28)), ("2-3".into(), "2-3".into()));
    run.apply("0-7");
    assert_eq!(mask(&run, 27), "0-7");
}

#[test]
fn tasks_in_the_root_cgroup_do_not_escape() {
    let mut run = run(guest(NEW));
    assert_eq!(run.guest.cgroup_of(1), REST, "swept ahead of time");
    assert_eq!(run.guest.cgroup_of(2), "", "kernel threads stay");
    run.guest.add_task(4711, Kind::User, "");
    run.apply("0-3");
    assert_eq!(run.guest.cgroup_of(4711), REST);
    assert_eq!(run.guest.mask(4711), "0-3");
    run.guest.add_task(4712, Kind::User, "");
    run.holder.reapply(Depth::Light).unwrap();
    assert_eq!(run.guest.mask(4712), "0-3", "found when looking again");
}

#[test]
fn a_task_that_cannot_be_moved_keeps_its_cpus_from_being_lent() {
    let mut run = run(guest(NEW));
    run.guest.add_task(4711, Kind::User, "");
    run.guest.pin_to_cgroup(4711);
    let outcome = run.apply("0-3");
    let reason = RefusalReason::InUse { tasks: "task 4711 (4711)".into() };
    expect(&outcome, "0-3", "", &[("4-7", reason)]);
    assert_eq!(outcome.leftovers.tasks.len(), 1);
    assert_eq!(outcome.leftovers.tasks[0].kind, TaskKind::User);
    run.guest.remove_task(4711);
    expect(&run.apply("0-3"), "0-3", "4-7", &[]);
}

#[test]
fn exclusive_cpus_are_refused_and_the_others_move() {
    let mut run = run(guest(NEW));
    run.guest.add_cgroup("batch");
    run.guest.make_partition("batch", "6");
    run.guest.add_cgroup("user.slice/pinned");
    run.guest.make_partition("user.slice/pinned", "4");
    let exclusive = |cgroup: &str| RefusalReason::Exclusive { cgroup: cgroup.into() };
    let refused = [("6", exclusive("batch")), ("4", exclusive("user.slice/pinned"))];
    expect(&run.apply("0-3"), "0-3", "5,7", &refused);
    assert_eq!(run.guest.cpuset("batch"), "6");
    assert_eq!(run.guest.cpuset("user.slice/pinned"), "4");
    assert_eq!(run.guest.cpuset("user.slice"), "0-4", "or the partition below would lose its CPU");
    assert_eq!(run.guest.mask(200), "0-3");
    expect(&run.apply("0-3,6"), "0-3,6", "5,7", &[("4", exclusive("user.slice/pinned"))]);
    expect(&run.apply("0-7"), "0-7", "", &[]);
    assert_eq!(run.guest.cpuset("user.slice"), "");
}

#[test]
fn a_partition_that_is_not_valid_is_not_made_so() {
    let mut run = run(guest(NEW));
    run.guest.add_cgroup("batch");
    run.guest.make_invalid_partition("batch", "6");
    let outcome = run.apply("0-3");
    assert_eq!((outcome.held, outcome.quiesced), (set("0-3"), set("4-5,7")));
    let RefusalReason::Cgroup { cgroup, error } = &outcome.refused[0].reason else { panic!("{:?}", outcome.refused) };
    assert!(cgroup == "batch" && error.contains("exclusively"), "{error}");
    assert_eq!((run.guest.cpuset("batch"), run.guest.mask(200)), ("6".into(), "0-3".into()));
}

#[test]
fn what_an_administrator_set_is_cut_and_restored() {
    let mut run = run(guest(NEW));
    run.guest.administer("system.slice", "2-5");
    run.guest.administer("user.slice", "6");
    run.apply("0-3");
    assert_eq!(run.guest.cpuset("system.slice"), "2-3");
    assert_eq!(run.guest.cpuset("user.slice"), "0-3", "it must run somewhere");
    run.guest.administer("user.slice", "1-6");
    run.holder.reapply(Depth::Light).unwrap();
    assert_eq!(run.guest.cpuset("user.slice"), "1-3", "a new wish is cut at once");
    run.apply("0-7");
    assert_eq!(run.guest.cpuset("system.slice"), "2-5");
    assert_eq!(run.guest.cpuset("user.slice"), "1-6");
}

#[test]
fn a_new_top_level_cgroup_is_confined_and_an_old_ones_name_starts_afresh() {
    let mut run = run(guest(NEW));
    run.guest.administer("user.slice", "1-6");
    run.apply("0-3");
    run.guest.add_cgroup("machine.slice");
    run.guest.add_task(300, Kind::User, "machine.slice");
    run.guest.remove_task(200);
    run.guest.remove_cgroup("user.slice");
    run.guest.add_cgroup("user.slice");
    run.holder.reapply(Depth::Light).unwrap();
    assert_eq!(run.guest.mask(300), "0-3");
    run.apply("0-7");
    assert_eq!(run.guest.cpuset("user.slice"), "");
    assert_eq!(run.guest.cpuset("machine.slice"), "");
}

#[test]
fn a_cgroup_that_cannot_be_changed_is_a_refusal() {
    let mut run = run(guest(NEW));
    run.guest.fix_cpuset("user.slice");
    let outcome = run.apply("0-3");
    assert_eq!(outcome.quiesced, set(""));
    let RefusalReason::Cgroup { cgroup, error } = &outcome.refused[0].reason else { panic!("{outcome:?}") };
    assert_eq!(cgroup, "user.slice");
    assert!(error.contains("busy"), "{error}");
    assert!(matches!(outcome.refused[1].reason, RefusalReason::InUse { .. }));
}

#[test]
fn own_affinity_comes_back_on_old_and_new_kernels() {
    for release in [OLD, NEW] {
        let mut run = run(guest(release));
        run.guest.wish(100, "2,5");
        run.guest.wish(200, "6-7");
        run.apply("0-3");
        assert_eq!(run.guest.mask(100), "2", "{release}");
        assert_eq!(run.guest.mask(200), "0-3", "{release}");
        run.guest.add_child(101, 100, Kind::User, "system.slice");
        run.guest.wish(200, "1");
        run.apply("0-5");
        assert_eq!(run.guest.mask(100), "2,5", "{release}");
        run.restart();
        run.apply("0-7");
        assert_eq!(run.guest.mask(100), "2,5", "{release}");
        assert_eq!(run.guest.mask(101), "2,5", "a child inherits, {release}");
        assert_eq!(run.guest.mask(200), "1", "changed meanwhile, {release}");
        assert_eq!(run.guest.mask(1), "0-7", "{release}");
    }
}

#[test]
fn a_restarted_agent_goes_on_where_it_stopped() {
    let mut run = run(guest(NEW));
    run.guest.administer("system.slice", "2-5");
    let before = run.guest.masks();
    run.apply("0-3");
    run.guest.add_cgroup("machine.slice");
    run.restart();
    assert_eq!(run.holder.newest(), Generation(1));
    assert_eq!(run.holder.holding(), Some(&set("0-3")));
    assert_eq!(run.guest.cpuset("machine.slice"), "0-3", "enforced without being told");
    run.guest.remove_cgroup("machine.slice");
    run.apply("0-7");
    assert_eq!(run.guest.masks(), before);
}

#[test]
fn stale_requests_are_refused_and_repeated_ones_do_nothing() {
    let mut run = run(guest(NEW));
    let soon = Instant::now() + Duration::from_secs(1);
    run.holder.apply(Generation(5), &set("0-3"), soon).unwrap();
    let stale = run.holder.apply(Generation(4), &set("0-7"), soon);
    assert_eq!(stale, Err(AgentError::Stale { newest: Generation(5) }));
    assert_eq!(run.guest.mask(100), "0-3");
    run.guest.take_writes();
    let again = run.holder.apply(Generation(5), &set("0-3"), soon).unwrap();
    expect(&again, "0-3", "4-7", &[]);
    assert_eq!(run.guest.take_writes(), Vec::<String>::new());
}

#[test]
fn cpus_that_are_not_there_are_refused_and_one_always_stays() {
    let mut run = run(guest(NEW));
    expect(&run.apply("2,9"), "2", "0-1,3-7", &[("9", RefusalReason::NotOnline)]);
    assert!(matches!(run.try_apply("9"), Err(AgentError::BadRequest(_))));
    assert!(matches!(run.try_apply(""), Err(AgentError::BadRequest(_))));
    assert_eq!(run.guest.mask(100), "2", "what was applied before stays");
}

#[test]
fn without_cgroup_v2_nothing_is_tried() {
    let guest = guest(NEW);
    guest.put("sys/fs/cgroup/cgroup.controllers", "hugetlb\n");
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Holder::open(guest.clone(), dir.path()).unwrap();
    assert!(matches!(holder.settle(), Err(AgentError::Unsupported(_))));
    let soon = Instant::now();
    assert!(matches!(holder.apply(Generation(1), &set("0"), soon), Err(AgentError::Unsupported(_))));
    assert_eq!(guest.take_writes(), Vec::<String>::new());
}

/// Anything that can happen between two holdings.
#[derive(Debug, Clone)]
enum Event {
    Hold(GuestCpuSet),
    Look,
    Restart,
    Fork(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let holding = (1u32..256).prop_map(|bits| Event::Hold(GuestCpuSet::from_mask(&format!("{bits:x}")).unwrap()));
    let event = prop_oneof![
        3 => holding,
        1 => Just(Event::Look),
        1 => Just(Event::Restart),
        1 => prop::sample::select(vec![1u32, 100, 200]).prop_map(Event::Fork),
    ];
    prop::collection::vec(event, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn no_user_task_is_outside_and_every_wish_returns(events in events(), old in any::<bool>(), wish in 1u32..256) {
        let mut run = run(guest(if old { OLD } else { NEW }));
        run.guest.wish(100, &GuestCpuSet::from_mask(&format!("{wish:x}")).unwrap().to_string());
        run.guest.administer("user.slice", "2-5");
        let before = run.guest.masks();
        let mut forked = Vec::new();
        let mut holding = set("0-7");
        for (index, event) in events.iter().enumerate() {
            match event {
                Event::Hold(cpus) => {
                    holding = cpus.clone();
                    let outcome = run.apply(&cpus.to_string());
                    prop_assert_eq!(&outcome.held, cpus);
                    prop_assert_eq!(outcome.quiesced, set("0-7").difference(cpus));
                }
                Event::Look => drop(run.holder.reapply(Depth::Everything).unwrap()),
                Event::Restart => run.restart(),
                Event::Fork(parent) => {
                    let pid = 5000 + index as u32;
                    let cgroup = run.guest.cgroup_of(*parent);
                    run.guest.add_child(pid, *parent, Kind::User, &cgroup);
                    forked.push((pid, *parent));
                }
            }
            prop_assert_eq!(run.guest.users_outside(&holding), Vec::<u32>::new());
        }
        run.apply("0-7");
        for (pid, parent) in forked {
            prop_assert_eq!(run.guest.mask(pid), run.guest.mask(parent));
            run.guest.remove_task(pid);
        }
        prop_assert_eq!(run.guest.masks(), before);
    }
}
