//! What another policy would change, key by key, in the words of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use conuma_balancing::{CoreDemand, MemoryDemand};
use serde::{Deserialize, Serialize};

use super::tuning::KEYS;
use super::{Mode, Partial, Priority, Rules, Tuning};

/// A key whose value changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `vm.db.weight`.
    pub key: String,
    /// What it was; `None`: it was not said.
    pub before: Option<String>,
    /// What it will be; `None`: it is not said any more.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {} = {after}", self.key),
            (Some(before), None) => write!(f, "- {} = {before}", self.key),
            (before, after) => {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                write!(f, "~ {} = {} (was {})", self.key, text(after), text(before))
            }
        }
    }
}

impl Rules {
    /// What `other` would change; nothing if it says the same.
    pub fn diff(&self, other: &Self) -> Vec<Change> {
        let (before, after) = (flat(self), flat(other));
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let change = |key: &String| {
            let (before, after) = (before.get(key).cloned(), after.get(key).cloned());
            (before != after).then(|| Change { key: key.clone(), before, after })
        };
        keys.into_iter().filter_map(change).collect()
    }
}

fn flat(rules: &Rules) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let mode = match rules.mode {
        Mode::Off => "off",
        Mode::Advise => "advise",
        Mode::Auto => "auto",
    };
    flat.insert("mode".into(), quoted(mode));
    if rules.utc_offset != super::UtcOffset::default() {
        flat.insert("utc_offset".into(), quoted(&rules.utc_offset.to_string()));
    }
    tuning(&mut flat, rules.tuning);
    for (vm, said) in &rules.vms {
        let path = format!("vm.{vm}");
        terms(&mut flat, &path, &said.always);
        for (index, (window, partial)) in said.windows.iter().enumerate() {
            let path = format!("{path}.window.{}", index + 1);
            flat.insert(path.clone(), window.to_string());
            terms(&mut flat, &path, partial);
        }
    }
    flat
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn terms(flat: &mut BTreeMap<String, String>, path: &str, terms: &Partial) {
    let mut say = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            flat.insert(format!("{path}.{key}"), value);
        }
    };
    let cores = |cores: &CoreDemand| match cores {
        CoreDemand::Count(count) => count.to_string(),
        CoreDemand::Cpus(cpus) => quoted(&cpus.to_string()),
    };
    let memory = |memory: &MemoryDemand| match memory {
        MemoryDemand::Total(total) => quoted(&total.to_string()),
        MemoryDemand::PerNode(nodes) => {
            let nodes: Vec<String> = nodes.iter().map(|(node, bytes)| format!("node{node} = \"{bytes}\"")).collect();
            format!("{{ {} }}", nodes.join(", "))
        }
    };
    let key = |demand: &Option<CoreDemand>| match demand {
        Some(CoreDemand::Cpus(_)) => "cpus",
        _ => "cores",
    };
    say("weight", terms.weight.map(|weight| weight.to_string()));
    say(&format!("guarantee.{}", key(&terms.guaranteed_cores)), terms.guaranteed_cores.as_ref().map(cores));
    say("guarantee.memory", terms.guaranteed_memory.as_ref().map(memory));
    say(&format!("limit.{}", key(&terms.most_cores)), terms.most_cores.as_ref().map(cores));
    say("limit.memory", terms.most_memory.as_ref().map(memory));
    let priority = |priority: Priority| match priority {
        Priority::Low => quoted("low"),
        Priority::Normal => quoted("normal"),
        Priority::High => quoted("high"),
    };
    say("priority", terms.priority.map(priority));
    say("hands_off", terms.hands_off.map(|hands_off| hands_off.to_string()));
}

fn tuning(flat: &mut BTreeMap<String, String>, now: Tuning) {
    for key in &KEYS {
        let (value, usual) = (key.text(now), key.text(Tuning::default()));
        if value != usual {
            flat.insert(format!("tuning.{}", key.name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_speaks_the_files_words() {
        let rules = |text: &str| Rules::parse(text, "p.toml").unwrap();
        let before = rules("mode = \"advise\"\n[vm.db]\nweight = 100\nhands_off = true\n");
        let after =
            rules("mode = \"auto\"\n[tuning]\ndwell = 2.5\n[vm.db]\nweight = 300\nguarantee = { memory = \"8G\" }\n");
        let changes: Vec<String> = before.diff(&after).iter().map(Change::to_string).collect();
        let expected = [
            "~ mode = \"auto\" (was \"advise\")",
            "+ tuning.dwell = 2.5",
            "+ vm.db.guarantee.memory = \"8G\"",
            "- vm.db.hands_off = true",
            "~ vm.db.weight = 300 (was 100)",
        ];
        assert_eq!(changes, expected);
        assert!(before.diff(&before).is_empty());
    }
}
