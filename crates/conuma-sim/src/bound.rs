//! What no policy can exceed, whatever it knows: cores serve what would be lost first, and all queues as if they were one, whose work
//! any of their VMs could do. To serve what can wait first would only exchange one core-second for another.

use std::time::Duration;

use crate::load::Load;
use crate::site::Site;
use crate::trace::Trace;

/// Useful core-seconds that a trace allows on a host.
pub fn most(trace: &Trace, site: &Site) -> f64 {
    let cores = site.cores.len() as f64;
    let mut loads: Vec<(Load<'_>, f64)> =
        trace.vms.iter().enumerate().map(|(vm, of)| (Load::new(of, site.limit(vm)), site.limit(vm) as f64)).collect();
    let (mut now, mut late, mut done) = (Duration::ZERO, 0.0, 0.0);
    while now < trace.end {
        let next = loads.iter().filter_map(|(load, _)| load.next_change()).min().unwrap_or(trace.end).min(trace.end);
        let seconds = (next - now).as_secs_f64();
        let (mut lost, mut waits, mut queues) = (0.0, 0.0, 0.0);
        for (load, limit) in &loads {
            if load.can_wait() {
                waits += load.comes();
                queues += limit;
            } else {
                lost += load.comes().min(*limit);
            }
        }
        let first = f64::min(lost, cores);
        let there = late + waits * seconds;
        let served = f64::min(there, f64::min(queues, cores - first) * seconds);
        late = there - served;
        done += first * seconds + served;
        now = next;
        for (load, _) in &mut loads {
            load.advance(next);
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most_of(points: &str) -> f64 {
        let trace = Trace::parse(&format!("# host 2n2c1t@4G\n# seconds 10\n{points}"), "x").expect("a trace");
        most(&trace, &Site::new(&trace, None).expect("a host"))
    }

    #[test]
    fn queues_wait_for_what_would_be_lost() {
        assert_eq!(most_of("0,a,3\n0,b,3\n"), 40.0);
        let queue = "# vm b kind=batch\n";
        assert_eq!(
            most_of(&format!("{queue}0,a,3\n5,a,0\n0,b,2\n")),
            15.0 + 20.0,
            "5 core-seconds are late, and done later"
        );
        assert_eq!(
            most_of(&format!("{queue}0,a,0\n5,a,4\n0,b,2\n")),
            20.0 + 10.0,
            "what comes at the end stays undone"
        );
        let limited = "# vm b kind=batch limit=2\n";
        assert_eq!(most_of(&format!("{limited}0,a,3\n5,a,0\n0,b,2\n")), 15.0 + 5.0 + 10.0, "it cannot catch up");
    }
}
