//! Reading what test programs print.
//!
//! A test that cannot do its work prints `skipped: <reason>` and returns. The harness counts it as passed; here it counts as
//! skipped.

use std::fmt;
use std::ops::Add;

const SKIP: &str = "skipped: ";

/// How tests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// A test that did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) test: String,
    pub(crate) reason: String,
}

/// Where in the output of a test program a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Part {
    #[default]
    Plain,
    /// What passed tests have printed, which is of no interest but for skips.
    Passed,
}

/// Collects counts and skips, line by line.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// So far.
    pub(crate) tally: Tally,
    /// So far.
    pub(crate) skips: Vec<Skip>,
    part: Part,
    /// The test whose output is being shown.
    test: String,
    /// Skips of the program that is at work; its own count, which comes last, has them as passed.
    uncounted: usize,
}

impl Report {
    /// Takes a line and gives it back if people should see it.
    pub(crate) fn line<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        if let Some(tally) = lab_tally(line) {
            self.tally = self.tally + tally;
            return None;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.part = Part::Plain;
            // Ignored ones are left to `--all`, as filtered ones are to other filters.
            let skipped = std::mem::take(&mut self.uncounted);
            let passed = count(counts, "passed").unwrap_or(0).saturating_sub(skipped);
            let failed = count(counts, "failed").unwrap_or(0);
            self.tally = self.tally + Tally { passed, failed, skipped };
            return Some(line);
        }
        if let Some((trial, reason)) =
            line.strip_prefix("lab trial ").and_then(|rest| rest.split_once(" ... skipped: "))
        {
            self.skips.push(Skip { test: trial.to_owned(), reason: reason.trim().to_owned() });
            return Some(line);
        }
        match line {
            "successes:" => self.part = Part::Passed,
            "failures:" => self.part = Part::Plain,
            _ => {}
        }
        if self.part == Part::Plain {
            return Some(line);
        }
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            test.clone_into(&mut self.test);
        } else if let Some(reason) = line.strip_prefix(SKIP) {
            self.skips.push(Skip { test: std::mem::take(&mut self.test), reason: reason.trim().to_owned() });
            self.uncounted += 1;
        }
        None
    }
}

/// The number before a word, as in `ok. 5 passed; 0 failed`.
fn count(text: &str, word: &str) -> Option<usize> {
    let before = text.split_once(word)?.0.trim_end();
    before.rsplit(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The last line of the lab's tests.
fn lab_tally(line: &str) -> Option<Tally> {
    let mut parts = line.split(", ");
    let mut part = |word: &str| parts.next()?.strip_suffix(word)?.parse().ok();
    Some(Tally { passed: part(" passed")?, failed: part(" failed")?, skipped: part(" skipped")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Report, String) {
        let mut report = Report::default();
        let shown: Vec<&str> = text.lines().filter_map(|line| report.line(line)).collect();
        (report, shown.join("\n"))
    }

    #[test]
    fn programs_are_added_up_and_skips_are_not_passes() {
        let (report, shown) = read(
            "running 2 tests\ntest a ... ok\ntest deep::b ... ok\n\nsuccesses:\n\n---- a stdout ----\nnoise\n\n\
             ---- deep::b stdout ----\nskipped: no such program\n\nsuccesses:\n    a\n    deep::b\n\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
             running 1 test\ntest c ... FAILED\n\nsuccesses:\n\nsuccesses:\n\nfailures:\n\n---- c stdout ----\nits words\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(report.tally, Tally { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(report.skips, [Skip { test: "deep::b".into(), reason: "no such program".into() }]);
        assert!(shown.contains("its words") && !shown.contains("noise"), "{shown}");
    }

    #[test]
    fn the_lab_counts_itself() {
        let (report, shown) = read(
            "lab trial one ... ok (1.0 s)\nlab trial two ... skipped: no old kernel\n4 passed, 0 failed, 1 skipped\nabout 5 passed\n",
        );
        assert_eq!(report.tally, Tally { passed: 4, failed: 0, skipped: 1 });
        assert_eq!(report.skips, [Skip { test: "two".into(), reason: "no old kernel".into() }]);
        assert!(!shown.contains("4 passed") && shown.contains("about 5 passed"), "{shown}");
        assert_eq!(report.tally.to_string(), "4 passed, 0 failed, 1 skipped");
    }
}
