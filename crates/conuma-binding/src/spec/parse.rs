//! Reading a VM file, keeping where each value stands.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use conuma_topology::{Bytes, CpuSet, NodeId, PciAddress, VmName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problem, SpecError};
use super::{Agent, Boot, BootSource, CoreWish, MEMORY_UNIT, MemoryWish, VmSpec, Wish};

const TOP_KEYS: &[&str] =
    &["name", "weight", "agent", "cid", "guarantee", "initial", "limit", "boot", "devices", "qemu_args"];
const WISH_KEYS: &[&str] = &["cores", "cpus", "memory"];
const BOOT_KEYS: &[&str] = &["memory_per_node", "kernel", "initrd", "cmdline", "disk"];
const DEFAULT_WEIGHT: u32 = 100;
const DEFAULT_BOOT_MEMORY: Bytes = Bytes::mib(256);
/// Vsock addresses below are those of the hypervisor, the machine itself and the host.
const FIRST_CID: u32 = 3;

/// The text a spec was read from, and where in it each value stands (by dotted path).
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    file: String,
    text: String,
    places: BTreeMap<String, Range<usize>>,
}

impl Source {
    /// A problem at the value with this path, or in the file as a whole if it is not written there.
    pub(super) fn problem(&self, path: &str, message: String, hint: Option<String>) -> Problem {
        self.problem_at(self.places.get(path).cloned(), message, hint)
    }

    pub(super) fn error(&self, problems: Vec<Problem>) -> SpecError {
        let file = if self.file.is_empty() { "VM".into() } else { self.file.clone() };
        SpecError { file, problems }
    }

    fn problem_at(&self, span: Option<Range<usize>>, message: String, hint: Option<String>) -> Problem {
        let Some(span) = span.filter(|span| self.text.is_char_boundary(span.start)) else {
            return Problem { line: None, column: None, excerpt: None, width: 1, message, hint };
        };
        let before = &self.text[..span.start];
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[span.start..].find('\n').map_or(self.text.len(), |at| span.start + at);
        let marked_to = span.end.clamp(span.start, end);
        Problem {
            line: Some(before.matches('\n').count() + 1),
            column: Some(self.text[begin..span.start].chars().count() + 1),
            excerpt: Some(self.text[begin..end].trim_end().to_owned()),
            width: self.text.get(span.start..marked_to).map_or(1, |marked| marked.trim_end().chars().count()).max(1),
            message,
            hint,
        }
    }
}

type Value<'a> = Spanned<DeValue<'a>>;

pub(super) fn parse(text: &str, file_name: &str) -> Result<VmSpec, SpecError> {
    let source = Source { file: file_name.into(), text: text.into(), places: BTreeMap::new() };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let message = format!("not TOML: {}", error.message().trim());
            return Err(source.error(vec![source.problem_at(error.span(), message, None)]));
        }
    };
    let mut reader = Reader { source, problems: Vec::new() };
    let spec = reader.spec(&table);
    match spec {
        Some(spec) if reader.problems.is_empty() => Ok(VmSpec { source: reader.source, ..spec }),
        _ => {
            reader.problems.sort_by_key(|problem| (problem.line.unwrap_or(usize::MAX), problem.column));
            Err(reader.source.error(reader.problems))
        }
    }
}

struct Reader {
    source: Source,
    problems: Vec<Problem>,
}

impl Reader {
    fn spec(&mut self, top: &DeTable<'_>) -> Option<VmSpec> {
        self.keys("", top, TOP_KEYS);
        let name = match top.get("name") {
            Some(value) => self.parsed::<VmName>("name", value, "text such as \"db-1\""),
            None => {
                self.missing("`name` is missing", "name = \"db-1\"");
                None
            }
        };
        let guarantee = match top.get("guarantee") {
            Some(value) => self.wish("guarantee", value),
            None => {
                self.missing("`[guarantee]` is missing", "[guarantee]\n      cores = 2\n      memory = \"1G\"");
                None
            }
        };
        let weight = top.get("weight").and_then(|v| self.integer("weight", v, 1, 10_000));
        let cid = top.get("cid").and_then(|v| self.integer("cid", v, FIRST_CID.into(), (u32::MAX - 1).into()));
        let agent = top.get("agent").and_then(|v| self.parsed::<Agent>("agent", v, "\"expected\" or \"none\""));
        let initial = top.get("initial").and_then(|v| self.wish("initial", v));
        let limit = top.get("limit").and_then(|v| self.wish("limit", v));
        let boot = match top.get("boot") {
            Some(value) => self.boot(value),
            None => Some(Boot { memory_per_node: DEFAULT_BOOT_MEMORY, source: BootSource::Other }),
        };
        let devices = top.get("devices").map(|v| self.devices(v)).unwrap_or_default();
        let qemu_args = top.get("qemu_args").map(|v| self.texts("qemu_args", v)).unwrap_or_default();
        let guarantee = guarantee?;
        self.wishes_agree(&guarantee, initial.as_ref(), limit.as_ref());
        Some(VmSpec {
            name: name?,
            weight: weight.unwrap_or(DEFAULT_WEIGHT),
            agent: agent.unwrap_or_default(),
            guarantee,
            initial,
            limit,
            boot: boot?,
            cid,
            devices,
            qemu_args,
            source: Source::default(),
        })
    }

    fn wish(&mut self, path: &str, value: &Value<'_>) -> Option<Wish> {
        let table = self.table(path, value)?;
        self.keys(path, table, WISH_KEYS);
        let cores_path = format!("{path}.cores");
        let cpus_path = format!("{path}.cpus");
        if let (Some(_), Some(cpus)) = (table.get("cores"), table.get("cpus")) {
            self.wrong(cpus.span(), "`cores` and `cpus` both say which cores".into(), Some("keep one of them".into()));
        }
        let count = table.get("cores").and_then(|v| self.integer(&cores_path, v, 0, 65_536));
        let cpus = table.get("cpus").and_then(|v| self.parsed::<CpuSet>(&cpus_path, v, "a list such as \"4-7,12\""));
        let memory = table.get("memory").and_then(|v| self.memory(&format!("{path}.memory"), v));
        Some(Wish { cores: cpus.map(CoreWish::Cpus).or(count.map(|n: u32| CoreWish::Count(n as usize))), memory })
    }

    fn memory(&mut self, path: &str, value: &Value<'_>) -> Option<MemoryWish> {
        if !value.get_ref().is_table() {
            return self.bytes(path, value).map(MemoryWish::Total);
        }
        let table = self.table(path, value)?;
        let mut nodes = BTreeMap::new();
        for (key, value) in table {
            let path = format!("{path}.{}", key.get_ref());
            match key.get_ref().strip_prefix("node").and_then(|number| number.parse::<u32>().ok()) {
                Some(number) => {
                    if let Some(bytes) = self.bytes(&path, value) {
                        nodes.insert(NodeId(number), bytes);
                    }
                }
                None => {
                    let message = format!("unknown key `{}`: not the name of a node", key.get_ref());
                    let hint = "name nodes as the host's Linux does: `memory = { node0 = \"4G\", node1 = \"4G\" }`";
                    self.wrong(key.span(), message, Some(hint.into()));
                }
            }
        }
        Some(MemoryWish::PerNode(nodes))
    }

    fn boot(&mut self, value: &Value<'_>) -> Option<Boot> {
        let table = self.table("boot", value)?;
        self.keys("boot", table, BOOT_KEYS);
        let memory_per_node = match table.get("memory_per_node") {
            Some(value) => self.bytes("boot.memory_per_node", value),
            None => Some(DEFAULT_BOOT_MEMORY),
        };
        if let (Some(bytes), Some(value)) = (memory_per_node, table.get("memory_per_node"))
            && (bytes.is_zero() || bytes != bytes.round_down(MEMORY_UNIT))
        {
            let message = format!("boot memory of {} bytes is not a positive multiple of {MEMORY_UNIT}", bytes.0);
            let near = bytes.round_up(MEMORY_UNIT).max(MEMORY_UNIT);
            self.wrong(value.span(), message, Some(format!("the next that fits is \"{near}\"")));
        }
        let mut text = |key: &str| table.get(key).and_then(|v| self.text(&format!("boot.{key}"), v));
        let (kernel, initrd, cmdline, disk) = (text("kernel"), text("initrd"), text("cmdline"), text("disk"));
        if kernel.is_none() {
            for key in ["initrd", "cmdline"] {
                if let Some(value) = table.get(key) {
                    let hint = "add `kernel = \"/path/to/vmlinuz\"`, or remove it".to_owned();
                    self.wrong(value.span(), format!("`{key}` is of no use without `kernel`"), Some(hint));
                }
            }
        }
        if let (Some(_), Some(value)) = (&kernel, table.get("disk")) {
            let hint = "with a kernel, attach disks through `qemu_args`".to_owned();
            self.wrong(value.span(), "`kernel` and `disk` both say what to boot".into(), Some(hint));
        }
        let source = match (kernel, disk) {
            (Some(kernel), _) => BootSource::Kernel {
                kernel: kernel.into(),
                initrd: initrd.map(Into::into),
                cmdline: cmdline.unwrap_or_default(),
            },
            (None, Some(disk)) => BootSource::Disk(disk.into()),
            (None, None) => BootSource::Other,
        };
        Some(Boot { memory_per_node: memory_per_node?, source })
    }

    fn devices(&mut self, value: &Value<'_>) -> Vec<PciAddress> {
        let mut devices = Vec::new();
        for (index, item) in self.items("devices", value).iter().enumerate() {
            let path = format!("devices.{index}");
            let Some(address) = self.parsed::<PciAddress>(&path, item, "an address such as \"0000:3b:00.0\"") else {
                continue;
            };
            if devices.contains(&address) {
                self.wrong(item.span(), format!("device {address} is listed twice"), None);
            } else {
                devices.push(address);
            }
        }
        devices
    }

    fn texts(&mut self, path: &str, value: &Value<'_>) -> Vec<String> {
        let items = self.items(path, value).to_vec();
        items.iter().enumerate().filter_map(|(index, item)| self.text(&format!("{path}.{index}"), item)).collect()
    }

    /// What the file alone tells: no one can start with, or be guaranteed, more than its limit.
    fn wishes_agree(&mut self, guarantee: &Wish, initial: Option<&Wish>, limit: Option<&Wish>) {
        let Some(limit) = limit else { return };
        for (path, wish) in [("guarantee", Some(guarantee)), ("initial", initial)] {
            let Some(wish) = wish else { continue };
            let hint = Some("raise `[limit]`, or remove it to allow the whole host".to_owned());
            if let (Some(wanted), Some(most)) = (&wish.memory, &limit.memory) {
                let beyond = match (wanted, most) {
                    (MemoryWish::PerNode(wanted), MemoryWish::PerNode(most)) => {
                        wanted.iter().any(|(node, bytes)| *bytes > most.get(node).copied().unwrap_or_default())
                    }
                    _ => wanted.total() > most.total(),
                };
                if beyond {
                    let message = format!("the memory of `[{path}]` is more than `[limit]` allows");
                    self.problems.push(self.source.problem(&format!("{path}.memory"), message, hint.clone()));
                }
            }
            let beyond = match (&wish.cores, &limit.cores) {
                (Some(CoreWish::Count(wanted)), Some(CoreWish::Count(most))) => wanted > most,
                (Some(CoreWish::Cpus(wanted)), Some(CoreWish::Cpus(most))) => !wanted.is_subset(most),
                _ => false,
            };
            if beyond {
                let key = if matches!(wish.cores, Some(CoreWish::Cpus(_))) { "cpus" } else { "cores" };
                let message = format!("the cores of `[{path}]` are more than `[limit]` allows");
                self.problems.push(self.source.problem(&format!("{path}.{key}"), message, hint));
            }
        }
    }

    fn keys(&mut self, section: &str, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let place = if section.is_empty() { "at the top of the file".into() } else { format!("in `[{section}]`") };
            let message = format!("unknown key `{name}` {place}");
            self.wrong(key.span(), message, Some(hint_for(name, section, known)));
        }
    }

    fn table<'a, 'i>(&mut self, path: &str, value: &'a Value<'i>) -> Option<&'a DeTable<'i>> {
        self.note(path, value);
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistyped(path, value, &format!("a table: `[{path}]`"));
        }
        table
    }

    fn items<'a, 'i>(&mut self, path: &str, value: &'a Value<'i>) -> &'a [Value<'i>] {
        self.note(path, value);
        match value.get_ref() {
            DeValue::Array(items) => items,
            _ => {
                self.mistyped(path, value, "a list: `[\"...\", \"...\"]`");
                &[]
            }
        }
    }

    fn text(&mut self, path: &str, value: &Value<'_>) -> Option<String> {
        self.note(path, value);
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.mistyped(path, value, "text in quotes");
        }
        text
    }

    fn parsed<T: FromStr<Err: ToString>>(&mut self, path: &str, value: &Value<'_>, expected: &str) -> Option<T> {
        self.note(path, value);
        let Some(text) = value.get_ref().as_str() else {
            self.mistyped(path, value, expected);
            return None;
        };
        text.parse().map_err(|error: T::Err| self.wrong(value.span(), error.to_string(), None)).ok()
    }

    fn bytes(&mut self, path: &str, value: &Value<'_>) -> Option<Bytes> {
        if value.get_ref().is_integer() {
            let bytes = self.integer(path, value, 0, i64::MAX.unsigned_abs());
            return bytes.map(|n: u64| Bytes(n));
        }
        self.parsed(path, value, "an amount of memory such as \"256M\"")
    }

    fn integer<T: TryFrom<u64>>(&mut self, path: &str, value: &Value<'_>, min: u64, max: u64) -> Option<T> {
        self.note(path, value);
        let Some(integer) = value.get_ref().as_integer() else {
            self.mistyped(path, value, "a whole number");
            return None;
        };
        let digits = integer.as_str().replace('_', "");
        let number = u64::from_str_radix(&digits, integer.radix()).ok().filter(|n| (min..=max).contains(n));
        if number.is_none() {
            let message = format!("`{path}` must be between {min} and {max}, not {integer}");
            self.wrong(value.span(), message, None);
        }
        number.and_then(|n| T::try_from(n).ok())
    }

    fn note(&mut self, path: &str, value: &Value<'_>) {
        self.source.places.insert(path.into(), value.span());
    }

    fn mistyped(&mut self, path: &str, value: &Value<'_>, expected: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(value.span(), format!("`{path}` is {found}, expected {expected}"), None);
    }

    fn missing(&mut self, message: &str, example: &str) {
        self.problems.push(self.source.problem_at(None, message.into(), Some(format!("add\n      {example}"))));
    }

    fn wrong(&mut self, span: Range<usize>, message: String, hint: Option<String>) {
        self.problems.push(self.source.problem_at(Some(span), message, hint));
    }
}

fn hint_for(name: &str, section: &str, known: &[&str]) -> String {
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let nearest = known.iter().map(|key| (distance(&plain, key), *key)).min();
    if let Some((steps, key)) = nearest
        && steps * 3 <= key.len().max(plain.len())
    {
        return format!("did you mean `{key}`?");
    }
    let elsewhere = [("guarantee", WISH_KEYS), ("boot", BOOT_KEYS), ("", TOP_KEYS)]
        .into_iter()
        .find(|(other, keys)| *other != section && keys.contains(&plain.as_str()));
    match elsewhere {
        Some(("", _)) => format!("`{plain}` belongs at the top of the file, before the first `[...]`"),
        Some((other, _)) => format!("`{plain}` belongs in `[{other}]`"),
        None => format!("known keys here: {}", known.join(", ")),
    }
}

/// Letters to add, remove or change to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
