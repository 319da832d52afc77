//! What others want, cut to what may be used. Pure.
//!
//! Properties: a cut is never empty and never outside the target; cutting to everything gives the
//! wish back; what was restored after any number of cuts is the wish.

use conuma_topology::GuestCpuSet;

/// A mask that somebody else set and the agent changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// What somebody else wants.
    pub wish: GuestCpuSet,
    /// What the agent wrote last.
    pub wrote: GuestCpuSet,
}

impl Touched {
    /// What is known after reading the mask: if it is not what the agent wrote, it is the new wish.
    pub fn observe(before: Option<Self>, now: GuestCpuSet) -> Self {
        match before {
            Some(touched) if touched.wrote == now => touched,
            _ => Self { wish: now.clone(), wrote: now },
        }
    }

    /// Whether the agent's value is the wish, so that there is nothing to remember.
    pub fn is_untouched(&self) -> bool {
        self.wish == self.wrote
    }
}

/// What may be used of the guest's CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// CPUs for everyone who has no CPUs of their own; never empty.
    pub cpus: GuestCpuSet,
    /// Whether these are all CPUs that are online and not exclusively owned: then every wish is
    /// granted in full.
    pub unrestricted: bool,
}

impl Target {
    /// The target for a holding; `None` if no CPU would be left.
    pub fn new(holding: &GuestCpuSet, online: &GuestCpuSet, exclusive: &GuestCpuSet) -> Option<Self> {
        let shared = online.difference(exclusive);
        let cpus = shared.intersection(holding);
        (!cpus.is_empty()).then(|| Self { unrestricted: shared.is_subset(&cpus), cpus })
    }

    /// The part of a wish that may be used, or the whole target if that is nothing: a task must
    /// run somewhere.
    pub fn cut(&self, wish: &GuestCpuSet) -> GuestCpuSet {
        if self.unrestricted {
            return wish.clone();
        }
        let both = wish.intersection(&self.cpus);
        if both.is_empty() { self.cpus.clone() } else { both }
    }

    /// What to write into a cgroup's `cpuset.cpus`: like [`Self::cut`], but an empty wish means
    /// "as my parent", and CPUs that cgroups below it own exclusively stay in it, as a partition
    /// loses its CPUs otherwise.
    pub fn cut_cpuset(&self, wish: &GuestCpuSet, owned_below: &GuestCpuSet) -> GuestCpuSet {
        if self.unrestricted { wish.clone() } else { self.cut(wish).union(owned_below) }
    }
}

/// A task's own affinity wish on a kernel that forgets it when it changes a cpuset (before 6.2),
/// told from the mask the task has now.
///
/// `recorded` is what was believed before, `inherited` what its parent or thread group leader
/// wants, `before` what was the target until now. `None`: the task wants nothing of its own.
pub fn own_affinity(
    recorded: Option<&GuestCpuSet>,
    inherited: Option<&GuestCpuSet>,
    allowed: &GuestCpuSet,
    before: &Target,
) -> Option<GuestCpuSet> {
    let fits = |wish: &&GuestCpuSet| {
        let both = wish.intersection(&before.cpus);
        *allowed == if both.is_empty() { before.cpus.clone() } else { both }
    };
    if let Some(known) = recorded.filter(fits).or_else(|| inherited.filter(fits)) {
        return Some(known.clone());
    }
    (!before.cpus.is_subset(allowed)).then(|| allowed.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> GuestCpuSet {
        text.parse().unwrap()
    }

    fn sets() -> impl Strategy<Value = GuestCpuSet> {
        any::<u8>().prop_map(|bits| GuestCpuSet::from_mask(&format!("{bits:x}")).unwrap())
    }

    fn holdings() -> impl Strategy<Value = GuestCpuSet> {
        sets().prop_filter("at least one CPU stays", |set| !set.is_empty())
    }

    proptest! {
        #[test]
        fn a_cut_is_never_empty_and_never_outside_the_target(wish in sets(), holding in holdings()) {
            let target = Target::new(&holding, &set("0-7"), &set("")).unwrap();
            if !target.unrestricted {
                let cut = target.cut(&wish);
                prop_assert!(!cut.is_empty());
                prop_assert!(cut.is_subset(&target.cpus));
            }
        }

        #[test]
        fn restored_is_the_wish_after_any_number_of_cuts(wish in sets(), path in prop::collection::vec(holdings(), 0..6)) {
            let mut touched = Touched::observe(None, wish.clone());
            for holding in path.iter().chain([&set("0-7")]) {
                touched = Touched::observe(Some(touched.clone()), touched.wrote.clone());
                let target = Target::new(holding, &set("0-7"), &set("")).unwrap();
                touched.wrote = target.cut_cpuset(&touched.wish, &set(""));
            }
            prop_assert_eq!(&touched.wrote, &wish);
            prop_assert!(touched.is_untouched());
        }

        #[test]
        fn own_affinity_survives_any_number_of_cuts(wish in holdings(), path in prop::collection::vec(holdings(), 1..6)) {
            let all = Target::new(&set("0-7"), &set("0-7"), &set("")).unwrap();
            let mut before = all.clone();
            let mut allowed = wish.clone();
            let mut recorded = None;
            for holding in &path {
                recorded = own_affinity(recorded.as_ref(), None, &allowed, &before);
                let target = Target::new(holding, &set("0-7"), &set("")).unwrap();
                // What the kernel does, and then what the agent does.
                allowed = target.cpus.clone();
                if let Some(own) = recorded.as_ref().map(|own| own.intersection(&target.cpus)).filter(|s| !s.is_empty()) {
                    allowed = own;
                }
                before = target;
            }
            let everything = wish == set("0-7");
            prop_assert_eq!(recorded, (!everything).then_some(wish));
        }
    }

    #[test]
    fn no_cpu_left_is_no_target() {
        assert_eq!(Target::new(&set("8"), &set("0-7"), &set("")), None);
        assert_eq!(Target::new(&set("1"), &set("0-7"), &set("1")), None);
    }

    #[test]
    fn exclusive_cpus_are_nobody_elses_and_stay_where_they_are() {
        let target = Target::new(&set("0-3"), &set("0-7"), &set("3,6")).unwrap();
        assert_eq!(target.cpus, set("0-2"));
        assert!(!target.unrestricted);
        assert_eq!(target.cut_cpuset(&set(""), &set("6")), set("0-2,6"));
        let target = Target::new(&set("0-5,7"), &set("0-7"), &set("6")).unwrap();
        assert!(target.unrestricted);
        assert_eq!(target.cut_cpuset(&set(""), &set("6")), set(""));
    }

    #[test]
    fn a_value_the_agent_did_not_write_is_the_new_wish() {
        let touched = Touched { wish: set("0-7"), wrote: set("0-3") };
        assert_eq!(Touched::observe(Some(touched.clone()), set("0-3")), touched);
        assert_eq!(Touched::observe(Some(touched), set("2")), Touched { wish: set("2"), wrote: set("2") });
    }

    #[test]
    fn own_affinity_is_inherited_by_children_and_follows_the_task() {
        let before = Target::new(&set("0-3"), &set("0-7"), &set("")).unwrap();
        let check = |recorded: Option<&str>, inherited: Option<&str>, allowed: &str, expected: Option<&str>| {
            let (recorded, inherited) = (recorded.map(set), inherited.map(set));
            let own = own_affinity(recorded.as_ref(), inherited.as_ref(), &set(allowed), &before);
            assert_eq!(own, expected.map(set), "recorded {recorded:?}, inherited {inherited:?}, allowed {allowed}");
        };
        check(None, None, "0-3", None);
        check(None, None, "2", Some("2"));
        check(Some("2,6"), None, "2", Some("2,6"));
        check(Some("6"), None, "0-3", Some("6"));
        check(Some("2,6"), None, "1", Some("1"));
        check(None, Some("2,6"), "2", Some("2,6"));
        check(Some("2,6"), None, "0-3", None);
        check(None, None, "0-7", None);
    }
}
