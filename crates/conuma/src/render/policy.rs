//! The policy: what is in force, what is wrong with a file, what it would change, pins.

use conuma_api::{PinAnswer, PinInfo, PolicyApplied, PolicyCheck, PolicyInfo, PolicyProblem, TermsInfo};
use conuma_topology::VmName;

use super::{amount, why};
use crate::style::Style;
use crate::table::Table;

/// What is in force, and the terms of every VM that runs. `now_unix_ms` is when it is looked at.
pub fn show<'a>(
    policy: &PolicyInfo,
    terms: impl Iterator<Item = (&'a VmName, &'a TermsInfo)>,
    now_unix_ms: u64,
    style: Style,
) -> String {
    let ago = policy.applied_at.map(|at| format!(", {} ago", amount::since(at, now_unix_ms))).unwrap_or_default();
    let file = match &policy.source {
        None => "none: every VM by the terms of its VM file".into(),
        Some(source) => format!("{source}{ago}; --text prints it"),
    };
    let mut lines = vec![("mode", why::mode(policy.mode, style)), ("file", file)];
    let cores = (policy.host_need_cores > 0).then(|| amount::cores(policy.host_need_cores as usize));
    let memory = policy.host_need.iter().map(|(node, bytes)| format!("{bytes} on node {node}"));
    let short: Vec<String> = cores.into_iter().chain(memory).collect();
    if !short.is_empty() {
        lines.push(("host", style.warn(&format!("short of {}", short.join(", ")))));
    }
    lines.extend(policy.pins.iter().map(|pin| ("pinned", format!("{} {}", pin.vm, why::pin(pin, now_unix_ms)))));
    let terms: Vec<_> = terms.collect();
    for (vm, of_vm) in &terms {
        lines.extend(of_vm.windows.iter().map(|window| ("window", format!("{vm}: {window}"))));
    }
    let mut text: String =
        lines.iter().map(|(key, value)| format!("{}{value}\n", style.dim(&format!("{key:<8}")))).collect();
    let mut table = Table::new(&["vm", ">weight", "priority", "guarantee", "limit", "from"]);
    for (vm, terms) in terms {
        let priority = why::priority(terms.priority);
        table.row([
            style.bold(vm.as_str()),
            terms.weight.to_string(),
            if terms.hands_off { style.warn("hands off") } else { priority.into() },
            amount::demand(&terms.guarantee, "nothing"),
            amount::demand(&terms.limit, "the host"),
            why::origin(terms),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&format!("\n{}", table.render(style)));
    }
    text
}

/// Whether a file is valid, what the daemon is concerned about, what would change. Without a daemon
/// (`daemon` is false) only the first is known.
pub fn check(check: &PolicyCheck, file: &str, daemon: bool, style: Style) -> String {
    if !check.problems.is_empty() {
        let count = amount::plural(check.problems.len() as u64, "problem");
        return format!("{}\n{}\n", problems(&check.problems, file), style.bad(&format!("{file} has {count}")));
    }
    let mut text = match check.ok {
        true => format!("{} {file} is valid\n", style.good("ok")),
        false => format!("{} {file} cannot be applied on this host\n", style.bad("invalid:")),
    };
    text.push_str(&concerns(&check.concerns, style));
    if daemon && check.ok {
        text.push_str(&format!("\n{}", diff(&check.changes, "Would change", style)));
    }
    text
}

/// What would change, or has changed.
pub fn diff(changes: &[String], head: &str, style: Style) -> String {
    if changes.is_empty() {
        return "nothing changes: this is what is in force\n".into();
    }
    let colored = |change: &String| match change.as_bytes().first() {
        Some(b'+') => style.good(change),
        Some(b'-') => style.warn(change),
        _ => change.clone(),
    };
    let lines = changes.iter().map(|change| format!("  {}\n", colored(change)));
    std::iter::once(format!("{}\n", style.bold(head))).chain(lines).collect()
}

/// What the daemon is concerned about.
pub fn concerns(concerns: &[String], style: Style) -> String {
    concerns.iter().map(|concern| format!("{} {concern}\n", style.warn("note:"))).collect()
}

/// What came of applying a file.
pub fn applied(applied: &PolicyApplied, style: Style) -> String {
    format!("{}in force; {}\n", diff(&applied.changes, "Changed", style), why::mode(applied.policy.mode, style))
}

/// What is wrong with a file: place, line with a mark, hint.
pub fn problems(problems: &[PolicyProblem], file: &str) -> String {
    problems.iter().map(|wrong| problem(wrong, file)).collect::<Vec<_>>().join("\n")
}

fn problem(problem: &PolicyProblem, file: &str) -> String {
    let PolicyProblem { line, column, message, hint, excerpt } = problem;
    let hint = hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    if *line == 0 {
        return format!("{file}: {message}\n{hint}");
    }
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let before = excerpt.chars().take((*column as usize).saturating_sub(1));
    // Tabs stay tabs, so that the mark stands below what it marks.
    let indent: String = before.map(|c| if c == '\t' { c } else { ' ' }).collect();
    let place = format!("{file}:{line}:{column}: {message}\n");
    format!("{place}{number} | {}\n{margin} | {indent}^\n{hint}", excerpt.trim_end())
}

/// What came of a change of the mode.
pub fn mode(policy: &PolicyInfo, style: Style) -> String {
    format!("{}\n", why::mode(policy.mode, style))
}

/// What came of pinning a VM.
pub fn pinned(vm: &VmName, answer: &PinAnswer, now_unix_ms: u64, style: Style) -> String {
    let name = style.bold(vm.as_str());
    match &answer.pin {
        Some(pin) => {
            let still = if answer.was_pinned { "still " } else { "" };
            format!("{name} is {still}pinned {}: the policy leaves it as it is\n", why::pinned_for(pin, now_unix_ms))
        }
        None => format!("{name} is not pinned\n"),
    }
}

/// What came of unpinning a VM.
pub fn unpinned(vm: &VmName, answer: &PinAnswer, style: Style) -> String {
    let name = style.bold(vm.as_str());
    match answer.was_pinned {
        true => format!("{name} is not pinned any more: the policy may move its cores and memory\n"),
        false => format!("{name} was not pinned\n"),
    }
}

/// What a transfer pinned, if anything.
pub fn pinned_by_transfer(pins: &[PinInfo], transfer: u64, now_unix_ms: u64) -> Option<String> {
    let pins: Vec<&PinInfo> = pins.iter().filter(|pin| pin.transfer == Some(transfer)).collect();
    let names: Vec<&str> = pins.iter().map(|pin| pin.vm.as_str()).collect();
    let first = pins.first()?;
    let (are, they) = if names.len() == 1 { ("is", "it") } else { ("are", "them") };
    let how_long = match first.until_unix_ms {
        Some(until) => format!("for {}", amount::until(until, now_unix_ms)),
        None => "until `conuma unpin`".into(),
    };
    Some(format!("{} {are} pinned {how_long}: the policy leaves {they} so", names.join(" and ")))
}
