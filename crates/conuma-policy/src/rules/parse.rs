//! Reading a policy file.

use conuma_balancing::{CoreDemand, MemoryDemand};
use conuma_binding::form::{Reader, Sections, Table, Value};
use conuma_binding::{CoreWish, MemoryWish, Wish};
use conuma_topology::VmName;

use super::time::{Days, TimeOfDay, Window};
use super::tuning::{self, Place};
use super::{Mode, Partial, Priority, Rules, RulesError, Tuning, UtcOffset, VmRules};

const TOP_KEYS: &[&str] = &["mode", "utc_offset", "tuning", "vm"];
const VM_KEYS: &[&str] = &["weight", "guarantee", "limit", "priority", "hands_off", "window"];
const WINDOW_KEYS: &[&str] = &["days", "from", "to", "weight", "guarantee", "limit", "priority", "hands_off"];
const SECTIONS: Sections =
    &[("", TOP_KEYS), ("vm.NAME", VM_KEYS), ("vm.NAME.window", WINDOW_KEYS), ("tuning", &tuning::NAMES)];
/// Windows of a VM at most.
const MOST_WINDOWS: usize = 64;

pub(super) fn parse(text: &str, file: &str) -> Result<Rules, RulesError> {
    let read = |reader: &mut Reader, top: &Table<'_>| Draft(reader).rules(top);
    Reader::read(text, file, SECTIONS, read).map(|(rules, _)| rules)
}

/// A policy file being read.
struct Draft<'a>(&'a mut Reader);

impl Draft<'_> {
    fn rules(&mut self, top: &Table<'_>) -> Option<Rules> {
        self.0.keys("", top, TOP_KEYS);
        let mode = match top.get("mode") {
            Some(value) => self.0.parsed::<Mode>("mode", value, "\"off\", \"advise\" or \"auto\""),
            None => {
                self.0.missing("`mode` is missing", "mode = \"auto\"");
                None
            }
        };
        let offset = |value| self.0.parsed::<UtcOffset>("utc_offset", value, "a text such as \"+01:00\"");
        let utc_offset = top.get("utc_offset").and_then(offset).unwrap_or_default();
        let tuning = top.get("tuning").map(|value| self.tuning(value)).unwrap_or_default();
        let mut rules = Rules { mode: mode.unwrap_or_default(), utc_offset, tuning, ..Rules::default() };
        if let Some(table) = top.get("vm").and_then(|value| self.0.table("vm", value)) {
            for (key, value) in table {
                let path = format!("vm.{}", key.get_ref());
                match key.get_ref().parse::<VmName>() {
                    Ok(name) => {
                        if let Some(vm) = self.vm(&path, value) {
                            rules.vms.insert(name, vm);
                        }
                    }
                    Err(error) => self.0.wrong(key.span(), error.to_string(), None),
                }
            }
        }
        mode.map(|_| rules)
    }

    fn vm(&mut self, path: &str, value: &Value<'_>) -> Option<VmRules> {
        let table = self.0.table(path, value)?;
        self.0.keys(path, table, VM_KEYS);
        let always = self.terms(path, table);
        let mut windows = Vec::new();
        if let Some(list) = table.get("window") {
            let path = format!("{path}.window");
            let items = self.0.items(&path, list);
            if items.len() > MOST_WINDOWS {
                self.0.wrong(
                    list.span(),
                    format!("a VM has {MOST_WINDOWS} windows at most, not {}", items.len()),
                    None,
                );
            }
            for (index, item) in items.iter().take(MOST_WINDOWS).enumerate() {
                windows.extend(self.window(&format!("{path}.{index}"), item));
            }
        }
        Some(VmRules { always, windows })
    }

    fn window(&mut self, path: &str, value: &Value<'_>) -> Option<(Window, Partial)> {
        let table = self.0.table(path, value)?;
        self.0.keys(path, table, WINDOW_KEYS);
        let days = match table.get("days") {
            None => Some(Days::ALL),
            Some(value) => {
                let names = self.0.texts(&format!("{path}.days"), value);
                Days::of(names.iter().map(String::as_str)).map_err(|why| self.0.wrong(value.span(), why, None)).ok()
            }
        };
        let mut time = |key: &str| match table.get(key) {
            Some(value) => self.0.parsed::<TimeOfDay>(&format!("{path}.{key}"), value, "a time such as \"08:30\""),
            None => {
                let hint = format!("add `{key} = \"08:00\"`");
                self.0.wrong(value.span(), format!("the window does not say `{key}`"), Some(hint));
                None
            }
        };
        let (from, to) = (time("from"), time("to"));
        let terms = self.terms(path, table);
        Some((Window { days: days?, from: from?, to: to? }, terms))
    }

    fn terms(&mut self, path: &str, table: &Table<'_>) -> Partial {
        let at = |key: &str| format!("{path}.{key}");
        let wish = |wish: Option<Wish>| {
            let wish = wish.unwrap_or_default();
            (wish.cores.map(cores), wish.memory.map(memory))
        };
        let weight = table.get("weight").and_then(|value| self.0.integer(&at("weight"), value, 1, 10_000));
        let guarantee = table.get("guarantee").and_then(|value| self.0.wish(&at("guarantee"), value));
        let limit = table.get("limit").and_then(|value| self.0.wish(&at("limit"), value));
        self.agree(path, guarantee.as_ref(), limit.as_ref());
        let priority = table.get("priority");
        let priority =
            priority.and_then(|value| self.0.parsed(&at("priority"), value, "\"high\", \"normal\" or \"low\""));
        let hands_off = table.get("hands_off").and_then(|value| self.0.boolean(&at("hands_off"), value));
        let (guaranteed_cores, guaranteed_memory) = wish(guarantee);
        let (most_cores, most_memory) = wish(limit);
        Partial { weight, guaranteed_cores, guaranteed_memory, most_cores, most_memory, priority, hands_off }
    }

    /// Nobody can be guaranteed more than its limit.
    fn agree(&mut self, path: &str, guarantee: Option<&Wish>, limit: Option<&Wish>) {
        let (Some(guarantee), Some(limit)) = (guarantee, limit) else { return };
        let hint = || Some("raise the limit, or leave it out".to_owned());
        if let (Some(CoreWish::Count(wanted)), Some(CoreWish::Count(most))) = (&guarantee.cores, &limit.cores)
            && wanted > most
        {
            let message = format!("{wanted} cores are guaranteed, but {most} are the limit");
            self.0.disagrees(&format!("{path}.guarantee.cores"), message, hint());
        }
        if let (Some(wanted), Some(most)) = (&guarantee.memory, &limit.memory)
            && wanted.total() > most.total()
        {
            let message = format!("{} is guaranteed, but {} is the limit", wanted.total(), most.total());
            self.0.disagrees(&format!("{path}.guarantee.memory"), message, hint());
        }
    }

    fn tuning(&mut self, value: &Value<'_>) -> Tuning {
        let mut tuning = Tuning::default();
        let Some(table) = self.0.table("tuning", value) else { return tuning };
        self.0.keys("tuning", table, &tuning::NAMES);
        for key in &tuning::KEYS {
            let Some(value) = table.get(key.name) else { continue };
            let path = format!("tuning.{}", key.name);
            match key.value {
                Place::Number(place, min, max) => set(place(&mut tuning), self.0.number(&path, value, min, max)),
                Place::Count(place, min, max) => set(place(&mut tuning), self.0.integer(&path, value, min, max)),
                Place::Switch(place) => set(place(&mut tuning), self.0.boolean(&path, value)),
            }
        }
        tuning
    }
}

fn set<T>(place: &mut T, read: Option<T>) {
    if let Some(read) = read {
        *place = read;
    }
}

fn cores(wish: CoreWish) -> CoreDemand {
    match wish {
        CoreWish::Count(count) => CoreDemand::Count(count),
        CoreWish::Cpus(cpus) => CoreDemand::Cpus(cpus),
    }
}

fn memory(wish: MemoryWish) -> MemoryDemand {
    match wish {
        MemoryWish::Total(total) => MemoryDemand::Total(total),
        MemoryWish::PerNode(nodes) => MemoryDemand::PerNode(nodes),
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "advise" => Ok(Self::Advise),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("`{text}` is none of \"off\", \"advise\", \"auto\"")),
        }
    }
}

impl std::str::FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err(format!("`{text}` is none of \"high\", \"normal\", \"low\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::WallTime;

    const EXAMPLE: &str = r#"
mode = "auto"
utc_offset = "+01:00"

[tuning]
dwell = 2
lend_idle_guarantee = false

[vm.db]
weight = 300
guarantee = { cores = 4, memory = "8G" }
priority = "high"

[[vm.db.window]]
days = ["sun"]
from = "08:00"
to = "09:00"
weight = 600
hands_off = true

[vm.legacy]
hands_off = true
"#;

    #[test]
    fn a_policy_reads_as_it_was_written() {
        let rules = Rules::parse(EXAMPLE, "p.toml").unwrap();
        assert_eq!(rules.mode, Mode::Auto);
        assert!(!rules.tuning.lend_idle_guarantee && rules.tuning.dwell == 2.0);
        let db = &rules.vms[&"db".parse().unwrap()];
        assert_eq!(db.always.guaranteed_cores, Some(CoreDemand::Count(4)));
        // 2026-11-22 07:30 UTC, a Sunday.
        let inside = WallTime::of_unix(1_795_332_600).local(rules.utc_offset);
        assert_eq!(db.at(inside).weight, Some(600));
        assert_eq!(db.at(inside).priority, Some(Priority::High), "what a window leaves out");
        let later = WallTime::of_unix(1_795_332_600 + 3600).local(rules.utc_offset);
        assert_eq!((db.at(later).weight, db.at(later).hands_off), (Some(300), None));
    }

    #[test]
    fn everything_that_is_wrong_is_told_where_it_is() {
        let text = r#"
mode = "on"
[tuning]
dwel = 1
horizon = -1
[vm.db]
weight = 0
guarantee = { cores = 8 }
limit = { cores = 4 }
[[vm.db.window]]
from = "25:00"
"#;
        let error = Rules::parse(text, "p.toml").unwrap_err().to_string();
        for part in [
            "p.toml:2:8: `on` is none of",
            "p.toml:4:1: unknown key `dwel` in `[tuning]`",
            "did you mean `dwell`?",
            "p.toml:5:11: `tuning.horizon` must be between",
            "p.toml:7:10: `vm.db.weight` must be between 1 and 10000",
            "8 cores are guaranteed, but 4 are the limit",
            "`25:00` is no time of day",
            "the window does not say `to`",
        ] {
            assert!(error.contains(part), "{part} is not in:\n{error}");
        }
        assert!(Rules::parse("mode = ", "p.toml").unwrap_err().to_string().contains("p.toml:1"));
        assert!(Rules::parse("", "p.toml").unwrap_err().to_string().contains("`mode` is missing"));
    }
}
