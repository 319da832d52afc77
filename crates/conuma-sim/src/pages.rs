//! Where a guest's working set is.
//!
//! New pages come to the nodes where the guest's cores are, as far as it holds memory there. Pages that are elsewhere follow at the
//! speed of cleanup. A working set that is larger than what the guest holds does not fit: it works slower, and reads pages again.

/// How fast cleanup moves pages, in bytes a second.
const CLEANUP: f64 = 512.0 * 1024.0 * 1024.0;

/// A working set by node, in bytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pages {
    /// In use on each node.
    pub on: Vec<f64>,
    /// Its size, whether it fits or not.
    pub wanted: f64,
    /// It should be on this node alone.
    pub home: Option<usize>,
    /// Nothing has changed since all was where it should be.
    settled: bool,
}

impl Pages {
    /// Nothing yet.
    pub fn new(nodes: usize, home: Option<usize>) -> Self {
        Self { on: vec![0.0; nodes], wanted: 0.0, home, settled: false }
    }

    /// Something that [`Pages::step`] goes by has changed.
    pub fn touch(&mut self) {
        self.settled = false;
    }

    /// Whether pages are on their way.
    pub fn moves(&self) -> bool {
        !self.settled
    }

    /// In use on all nodes.
    pub fn total(&self) -> f64 {
        self.on.iter().sum()
    }

    /// Time passes: the working set is `wanted`, `usable` is what can be used on each node, `cores` are on them.
    pub fn step(&mut self, wanted: f64, usable: &[f64], cores: &[usize], seconds: f64) {
        if self.settled && self.wanted == wanted {
            return;
        }
        self.wanted = wanted;
        let goal = self.goal(usable, cores);
        for (used, most) in self.on.iter_mut().zip(usable) {
            *used = used.min(*most);
        }
        let missing = goal.iter().sum::<f64>() - self.total();
        let lacks: Vec<f64> = goal.iter().zip(&self.on).map(|(goal, used)| (goal - used).max(0.0)).collect();
        let extra: Vec<f64> = goal.iter().zip(&self.on).map(|(goal, used)| (used - goal).max(0.0)).collect();
        let (all_lacks, all_extra): (f64, f64) = (lacks.iter().sum(), extra.iter().sum());
        // What grows or shrinks does so at once, the rest follows.
        let follows = (CLEANUP * seconds).min(all_lacks.min(all_extra));
        let (come, go) = (follows + missing.max(0.0), follows + (-missing).max(0.0));
        for (place, used) in self.on.iter_mut().enumerate() {
            if all_lacks > 0.0 {
                *used += lacks[place] * (come / all_lacks).min(1.0);
            }
            if all_extra > 0.0 {
                *used -= extra[place] * (go / all_extra).min(1.0);
            }
        }
        self.settled = all_lacks.min(all_extra) - follows < 1.0;
    }

    /// Where it should be.
    fn goal(&self, usable: &[f64], cores: &[usize]) -> Vec<f64> {
        let all: usize = cores.iter().sum();
        let share = |place: usize| match self.home {
            Some(home) => f64::from(u8::from(home == place)),
            None if all == 0 => 1.0 / cores.len() as f64,
            None => cores[place] as f64 / all as f64,
        };
        let mut goal: Vec<f64> =
            (0..usable.len()).map(|place| (self.wanted * share(place)).min(usable[place])).collect();
        let mut rest = self.wanted - goal.iter().sum::<f64>();
        // What has no room there goes first where other pages of it are.
        let mut order: Vec<usize> = (0..usable.len()).collect();
        order.sort_by(|a, b| self.on[*b].total_cmp(&self.on[*a]));
        for place in order {
            let part = (usable[place] - goal[place]).max(0.0).min(rest);
            goal[place] += part;
            rest -= part;
        }
        goal
    }

    /// Makes so much of a node free that no more than `most` is in use there, as far as there is room elsewhere.
    pub fn make_room(&mut self, place: usize, most: f64, usable: &[f64]) {
        let mut over = (self.on[place] - most).max(0.0);
        for other in (0..self.on.len()).filter(|other| *other != place) {
            let part = (usable[other] - self.on[other]).max(0.0).min(over);
            self.on[other] += part;
            self.on[place] -= part;
            over -= part;
        }
        self.settled = false;
    }

    /// The share of accesses that stay on their node: each core uses an equal part of the working set, near as far as it is there.
    pub fn near(&self, cores: &[usize]) -> f64 {
        let (all, total) = (cores.iter().sum::<usize>() as f64, self.total());
        if all == 0.0 || total < 1.0 {
            return 1.0;
        }
        let near = |(cores, used): (&usize, &f64)| (total * *cores as f64 / all).min(*used);
        cores.iter().zip(&self.on).map(near).sum::<f64>() / total
    }

    /// How fast the guest works with memory for a part of its working set only.
    pub fn fit(&self) -> f64 {
        if self.wanted < 1.0 { 1.0 } else { (self.total() / self.wanted).min(1.0) }
    }

    /// What does not fit.
    pub fn short(&self) -> f64 {
        (self.wanted - self.total()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

    #[test]
    fn pages_follow_the_cores_at_the_speed_of_cleanup() {
        let mut pages = Pages::new(2, None);
        let usable = [4.0 * GIB, 4.0 * GIB];
        pages.step(2.0 * GIB, &usable, &[2, 0], 0.1);
        assert_eq!((pages.near(&[2, 0]), pages.fit()), (1.0, 1.0));
        assert_eq!(pages.near(&[0, 2]), 0.0);
        pages.touch();
        pages.step(2.0 * GIB, &usable, &[0, 2], 1.0);
        assert!((pages.near(&[0, 2]) - 0.25).abs() < 1e-6, "{pages:?}");
    }

    #[test]
    fn what_does_not_fit_is_short() {
        let mut pages = Pages::new(2, Some(1));
        pages.step(3.0 * GIB, &[GIB, GIB], &[1, 1], 1.0);
        assert!((pages.fit() - 2.0 / 3.0).abs() < 1e-6 && (pages.short() - GIB).abs() < 1.0, "{pages:?}");
        pages.touch();
        pages.step(3.0 * GIB, &[GIB, 4.0 * GIB], &[1, 1], 60.0);
        assert!((pages.on[1] - 3.0 * GIB).abs() < 1.0, "{pages:?}");
    }
}
