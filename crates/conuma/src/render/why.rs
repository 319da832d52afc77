//! Why a VM holds what it holds.

use conuma_api::{PinInfo, PolicyMode, PriorityInfo, TermsInfo, VmOutlook, VmWhy};

use super::{amount, decision, estimate};
use crate::style::Style;

/// Its terms, what it is believed to want, what was decided. `now_unix_ms` is when it is looked at.
pub fn show(why: &VmWhy, now_unix_ms: u64, style: Style) -> String {
    let TermsInfo { weight, guarantee, limit, priority, hands_off, .. } = &why.terms;
    let hands_off = if *hands_off { style.warn(", hands off: the policy leaves it alone") } else { String::new() };
    let lines = [
        ("policy", mode(why.mode, style)),
        ("terms", format!("weight {weight}, priority {}{hands_off}", self::priority(*priority))),
        ("guarantee", amount::demand(guarantee, "nothing")),
        ("limit", amount::demand(limit, "the host less its reserve")),
        ("from", source(&why.terms)),
        ("pinned", why.pin.as_ref().map_or("no".into(), |pin| style.warn(&self::pin(pin, now_unix_ms)))),
    ];
    let mut text = format!("{}\n", style.bold(why.vm.as_str()));
    for (key, value) in lines {
        text.push_str(&format!("  {}{value}\n", style.dim(&format!("{key:<11}"))));
    }
    match &why.estimate {
        Some(known) => text.push_str(&format!("\n{}", estimate::one(known, style))),
        None => text.push_str(&format!("\n{}\n", style.warn("nothing was learnt of its load for a while"))),
    }
    if let Some(outlook) = &why.outlook {
        text.push_str(&decided(why, outlook, now_unix_ms, style));
    }
    if let Some(id) = why.last_moved_by {
        text.push_str(&format!("\nlast moved by decision {id}: `conuma history {id}`\n"));
    }
    text
}

fn decided(why: &VmWhy, outlook: &VmOutlook, now_unix_ms: u64, style: Style) -> String {
    let ago = why.decided_unix_ms.map(|at| format!(", {} ago", amount::since(at, now_unix_ms))).unwrap_or_default();
    let mut text = format!("\n{}{ago}\n", style.bold("Last decision"));
    let VmOutlook { cores_now, cores_after, needed_cores, share, .. } = outlook;
    let mut cores = amount::change(&cores_now.to_string(), &cores_after.to_string());
    cores.push_str(&format!("; its fair share is {share}, of its guarantee it needs {needed_cores}"));
    let score = |score: f64| format!("{score:.0}");
    let mut lines = vec![("cores", cores)];
    if outlook.now.memory != outlook.after.memory {
        let memory = |held: &conuma_api::Resources| {
            amount::resources(&conuma_api::Resources { memory: held.memory.clone(), ..Default::default() })
        };
        lines.push(("memory", amount::change(&memory(&outlook.now), &memory(&outlook.after))));
    }
    lines.push(("score", amount::change(&score(outlook.score_now), &score(outlook.score_after)) + " of 100"));
    lines.extend(outlook.held_why.as_ref().map(|held| ("left as it is", held.text.clone())));
    lines.extend(why.rejected.iter().map(|rejected| ("not done", decision::rejection(rejected, style))));
    for (key, value) in lines {
        text.push_str(&format!("  {}{value}\n", style.dim(&format!("{key:<15}"))));
    }
    text
}

/// What a mode means.
pub(super) fn mode(mode: PolicyMode, style: Style) -> String {
    match mode {
        PolicyMode::Off => "off: nothing moves by itself".into(),
        PolicyMode::Advise => format!("{}: decisions are made and shown, nothing moves", style.warn("advise")),
        PolicyMode::Auto => format!("{}: decisions are carried out", style.good("auto")),
        PolicyMode::Unknown => "a mode that this program does not know".into(),
    }
}

pub(super) fn priority(priority: PriorityInfo) -> &'static str {
    match priority {
        PriorityInfo::Low => "low",
        PriorityInfo::Normal => "normal",
        PriorityInfo::High => "high",
        PriorityInfo::Unknown => "unknown",
    }
}

/// Where terms come from, in a word or two.
pub(super) fn origin(terms: &TermsInfo) -> String {
    match (terms.in_policy, terms.windows.as_slice()) {
        (false, _) => "VM file".into(),
        (true, []) => "policy".into(),
        (true, _) => "policy, window".into(),
    }
}

fn source(terms: &TermsInfo) -> String {
    match (terms.in_policy, terms.windows.as_slice()) {
        (false, _) => "its VM file; the policy says nothing of it".into(),
        (true, []) => "the policy; what that does not say from its VM file".into(),
        (true, windows) => format!("the policy, now {}; the rest from its VM file", windows.join(" and ")),
    }
}

/// `by lend (transfer 12), for 1 h 59 min more`.
pub(super) fn pin(pin: &PinInfo, now_unix_ms: u64) -> String {
    let transfer = pin.transfer.map(|id| format!(" (transfer {id})")).unwrap_or_default();
    format!("by {}{transfer}, {}", pin.by, pinned_for(pin, now_unix_ms))
}

/// `for 1 h 59 min more`, or `until it is unpinned`.
pub(super) fn pinned_for(pin: &PinInfo, now_unix_ms: u64) -> String {
    match pin.until_unix_ms {
        Some(until) => format!("for {} more", amount::until(until, now_unix_ms)),
        None => "until it is unpinned".into(),
    }
}
