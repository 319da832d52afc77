//! What a VM has to do, and what becomes of it.

use std::time::Duration;

use conuma_topology::Bytes;

use crate::trace::{Kind, Point, TraceVm};

/// Late work is caught up within about so many seconds, if there are cores.
const CATCH_UP: f64 = 5.0;

/// The load of one VM while time passes.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    vm: &'a TraceVm,
    /// How many points have begun.
    begun: usize,
    now: Point,
    /// Core-seconds that are late.
    late: f64,
    /// Cores that it can use at most.
    most: f64,
}

impl<'a> Load<'a> {
    /// At the begin of the trace. It can use `most` cores.
    pub fn new(vm: &'a TraceVm, most: usize) -> Self {
        let now = Point { at: Duration::ZERO, cores: 0.0, memory: Bytes::ZERO };
        let mut load = Self { vm, begun: 0, now, late: 0.0, most: most as f64 };
        load.advance(Duration::ZERO);
        load
    }

    /// What becomes of work without a core.
    pub fn kind(&self) -> Kind {
        self.vm.terms.kind
    }

    /// Goes on to `now`; whether anything has changed.
    pub fn advance(&mut self, now: Duration) -> bool {
        let before = self.begun;
        while let Some(next) = self.vm.points.get(self.begun).filter(|point| point.at <= now) {
            self.now = *next;
            self.begun += 1;
        }
        self.begun != before
    }

    /// When it changes next.
    pub fn next_change(&self) -> Option<Duration> {
        self.vm.points.get(self.begun).map(|point| point.at)
    }

    /// Work that comes, in cores.
    pub fn comes(&self) -> f64 {
        match self.kind() {
            Kind::Hpc => self.now.cores.round(),
            _ => self.now.cores,
        }
    }

    /// Cores that it would use now.
    pub fn wants(&self) -> f64 {
        (self.comes() + self.late / CATCH_UP).min(self.most)
    }

    /// Core-seconds that are late.
    pub fn late(&self) -> f64 {
        self.late
    }

    /// Work can be done later.
    pub fn can_wait(&self) -> bool {
        self.kind() == Kind::Batch
    }

    /// Its working set.
    pub fn memory(&self) -> Bytes {
        self.now.memory
    }

    /// How fast it works on so many whole cores, in cores. Threads in step share cores evenly or wait for the one that does not.
    pub fn speed(&self, held: usize) -> f64 {
        let wants = self.wants();
        if self.kind() != Kind::Hpc || held as f64 >= wants || held == 0 {
            return wants.min(held as f64);
        }
        let threads = wants.round().max(1.0);
        threads / (threads / held as f64).ceil()
    }

    /// Cores that are busy while it holds so many.
    pub fn busy(&self, held: usize) -> f64 {
        match self.kind() {
            Kind::Spin if self.wants() > 0.0 => held as f64,
            _ => self.wants().min(held as f64),
        }
    }

    /// Works at `speed` for `seconds`; the core-seconds that were done.
    pub fn work(&mut self, speed: f64, seconds: f64) -> f64 {
        if !self.can_wait() {
            return speed.min(self.comes()) * seconds;
        }
        let there = self.late + self.comes() * seconds;
        let done = (speed * seconds).min(there);
        self.late = there - done;
        if self.late < 1e-6 {
            self.late = 0.0;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::VmTerms;

    fn vm(kind: Kind, cores: f64) -> TraceVm {
        let terms = VmTerms { kind, ..VmTerms::default() };
        let points = vec![Point { at: Duration::ZERO, cores, memory: Bytes::ZERO }];
        TraceVm { name: "a".parse().unwrap(), terms, points }
    }

    #[test]
    fn late_work_is_done_later_in_a_queue_and_lost_elsewhere() {
        let vm = vm(Kind::Batch, 4.0);
        let mut load = Load::new(&vm, 8);
        assert_eq!(load.work(2.0, 1.0), 2.0);
        assert_eq!((load.late(), load.wants()), (2.0, 4.4));
        assert_eq!(load.work(8.0, 1.0), 6.0);
        assert_eq!(load.late(), 0.0);
        let vm = self::vm(Kind::Web, 4.0);
        let mut load = Load::new(&vm, 8);
        assert_eq!((load.work(2.0, 1.0), load.wants()), (2.0, 4.0));
    }

    #[test]
    fn threads_in_step_are_as_fast_as_the_slowest() {
        let vm = vm(Kind::Hpc, 8.0);
        let load = Load::new(&vm, 16);
        let speeds: Vec<f64> = [0, 1, 4, 7, 8, 9].into_iter().map(|held| load.speed(held)).collect();
        assert_eq!(speeds, [0.0, 1.0, 4.0, 4.0, 8.0, 8.0]);
    }
}
