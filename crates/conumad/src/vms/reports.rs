//! The last reports of a guest.

use std::sync::Arc;
use std::time::Duration;

use conuma_agent_proto::Report;

/// Rates over less are noise: kernels count most times in ticks of up to 10 ms. Reports that were not asked for may come
/// right after one that was.
const SPAN: Duration = Duration::from_millis(500);

/// How much longer than the host knows of a guest may be up that has booted anew: messages take their time.
const SLACK: Duration = Duration::from_secs(1);

/// The last report of a guest, and one before it to tell rates from.
#[derive(Default)]
pub(crate) struct Reports {
    /// The last, and when it came in engine time.
    pub(crate) last: Option<(Arc<Report>, Duration)>,
    /// Of the same boot, and mostly by [`SPAN`] older than the last at least.
    pub(crate) before: Option<Arc<Report>>,
}

impl Reports {
    /// Keeps a report that came at `now`, unless one that was made later has overtaken it: what is not asked for has the
    /// shorter way.
    pub(crate) fn keep(&mut self, report: Arc<Report>, now: Duration) {
        let uptime = report.uptime;
        if let Some((last, at)) = &self.last
            && uptime < last.uptime
            // Else the guest has booted since.
            && uptime > now.saturating_sub(*at) + SLACK
        {
            return;
        }
        let Some((last, _)) = self.last.replace((report, now)) else { return };
        match uptime.checked_sub(last.uptime) {
            None => self.before = None,
            Some(gap) if gap < SPAN && self.before.is_some() => {}
            Some(_) => self.before = Some(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_was_overtaken_is_not_the_last() {
        let mut reports = Reports::default();
        let mut check = |uptime: u64, at: u64, last: u64| {
            let report = Report { uptime: Duration::from_millis(uptime), ..Report::default() };
            reports.keep(Arc::new(report), Duration::from_millis(at));
            assert_eq!(reports.last.as_ref().map(|(report, _)| report.uptime), Some(Duration::from_millis(last)));
        };
        check(60_000, 1000, 60_000);
        check(59_990, 1005, 60_000);
        check(60_500, 1500, 60_500);
        // Booted anew, ten seconds ago.
        check(10_000, 12_000, 10_000);
        check(9_000, 12_001, 10_000);
    }

    #[test]
    fn rates_are_told_from_reports_that_are_not_too_near() {
        let mut reports = Reports::default();
        let mut check = |uptime: u64, before: Option<u64>| {
            let uptime = Duration::from_millis(uptime);
            reports.keep(Arc::new(Report { uptime, ..Report::default() }), uptime);
            assert_eq!(reports.last.as_ref().map(|(report, _)| report.uptime), Some(uptime));
            assert_eq!(reports.before.as_ref().map(|report| report.uptime), before.map(Duration::from_millis));
        };
        check(1000, None);
        check(1010, Some(1000));
        check(6000, Some(1010));
        // Pushes.
        check(6010, Some(1010));
        check(6260, Some(1010));
        check(7010, Some(6260));
        // Of a new boot that nobody told of.
        check(100, None);
        check(110, Some(100));
    }
}
