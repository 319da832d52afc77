//! Reading a TOML file that people wrote: everything that is wrong is told at once, where it stands and with a hint.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use conuma_topology::{Bytes, CpuSet, NodeId};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::spec::{CoreWish, MemoryWish, Problem, SpecError, Wish};

/// The keys of what is guaranteed, or a limit.
pub const WISH_KEYS: &[&str] = &["cores", "cpus", "memory"];

/// Sections of a file with their keys, for hints; the empty name is the top.
pub type Sections = &'static [(&'static str, &'static [&'static str])];

/// A value with its place.
pub type Value<'a> = Spanned<DeValue<'a>>;

/// A table of such values.
pub type Table<'a> = DeTable<'a>;

/// A text, and where in it each value stands (by dotted path).
#[derive(Debug, Clone, Default)]
pub struct Source {
    file: String,
    text: String,
    places: BTreeMap<String, Range<usize>>,
}

impl Source {
    /// A problem at the value with this path, or in the file as a whole if it is not written there.
    pub(crate) fn problem(&self, path: &str, message: String, hint: Option<String>) -> Problem {
        self.problem_at(self.places.get(path).cloned(), message, hint)
    }

    pub(crate) fn error(&self, problems: Vec<Problem>) -> SpecError {
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

/// Reads values out of a file and collects what is wrong with them.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    problems: Vec<Problem>,
    sections: Sections,
}

impl Reader {
    /// Reads a text with `read`; `file` only appears in errors. `None` from `read` is an error that it has told.
    pub fn read<T>(
        text: &str,
        file: &str,
        sections: Sections,
        read: impl FnOnce(&mut Self, &Table<'_>) -> Option<T>,
    ) -> Result<(T, Source), SpecError> {
        let source = Source { file: file.into(), text: text.into(), places: BTreeMap::new() };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let message = format!("not TOML: {}", error.message().trim());
                return Err(source.error(vec![source.problem_at(error.span(), message, None)]));
            }
        };
        let mut reader = Self { source, problems: Vec::new(), sections };
        let value = read(&mut reader, &table);
        match value {
            Some(value) if reader.problems.is_empty() => Ok((value, reader.source)),
            _ => {
                reader.problems.sort_by_key(|problem| (problem.line.unwrap_or(usize::MAX), problem.column));
                Err(reader.source.error(reader.problems))
            }
        }
    }

    /// What the file as a whole says is wrong, at the value with this path.
    pub fn disagrees(&mut self, path: &str, message: String, hint: Option<String>) {
        let problem = self.source.problem(path, message, hint);
        self.problems.push(problem);
    }

    /// True or false.
    pub fn boolean(&mut self, path: &str, value: &Value<'_>) -> Option<bool> {
        self.note(path, value);
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.mistyped(path, value, "true or false");
        }
        boolean
    }

    /// A number within bounds.
    pub fn number(&mut self, path: &str, value: &Value<'_>, min: f64, max: f64) -> Option<f64> {
        self.note(path, value);
        let text = match value.get_ref() {
            DeValue::Float(float) => Some(float.as_str().replace('_', "")),
            DeValue::Integer(integer) => Some(integer.as_str().replace('_', "")),
            _ => None,
        };
        let Some(text) = text else {
            self.mistyped(path, value, "a number");
            return None;
        };
        let number = text.parse::<f64>().ok().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.wrong(value.span(), format!("`{path}` must be between {min} and {max}, not {text}"), None);
        }
        number
    }

    /// Cores and memory that someone asks for.
    pub fn wish(&mut self, path: &str, value: &Value<'_>) -> Option<Wish> {
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

    /// An amount of memory, in all or by node.
    pub fn memory(&mut self, path: &str, value: &Value<'_>) -> Option<MemoryWish> {
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

    /// A list of texts.
    pub fn texts(&mut self, path: &str, value: &Value<'_>) -> Vec<String> {
        let items = self.items(path, value).to_vec();
        items.iter().enumerate().filter_map(|(index, item)| self.text(&format!("{path}.{index}"), item)).collect()
    }

    /// Refuses keys that are not known in a section.
    pub fn keys(&mut self, section: &str, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let place = if section.is_empty() { "at the top of the file".into() } else { format!("in `[{section}]`") };
            let message = format!("unknown key `{name}` {place}");
            self.wrong(key.span(), message, Some(hint_for(name, section, known, self.sections)));
        }
    }

    /// A table.
    pub fn table<'a, 'i>(&mut self, path: &str, value: &'a Value<'i>) -> Option<&'a DeTable<'i>> {
        self.note(path, value);
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistyped(path, value, &format!("a table: `[{path}]`"));
        }
        table
    }

    /// A list.
    pub fn items<'a, 'i>(&mut self, path: &str, value: &'a Value<'i>) -> &'a [Value<'i>] {
        self.note(path, value);
        match value.get_ref() {
            DeValue::Array(items) => items,
            _ => {
                self.mistyped(path, value, "a list: `[\"...\", \"...\"]`");
                &[]
            }
        }
    }

    /// A text.
    pub fn text(&mut self, path: &str, value: &Value<'_>) -> Option<String> {
        self.note(path, value);
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.mistyped(path, value, "text in quotes");
        }
        text
    }

    /// A text with a meaning; `expected` says what it should be.
    pub fn parsed<T: FromStr<Err: ToString>>(&mut self, path: &str, value: &Value<'_>, expected: &str) -> Option<T> {
        self.note(path, value);
        let Some(text) = value.get_ref().as_str() else {
            self.mistyped(path, value, expected);
            return None;
        };
        text.parse().map_err(|error: T::Err| self.wrong(value.span(), error.to_string(), None)).ok()
    }

    /// An amount of memory.
    pub fn bytes(&mut self, path: &str, value: &Value<'_>) -> Option<Bytes> {
        if value.get_ref().is_integer() {
            let bytes = self.integer(path, value, 0, i64::MAX.unsigned_abs());
            return bytes.map(|n: u64| Bytes(n));
        }
        self.parsed(path, value, "an amount of memory such as \"256M\"")
    }

    /// A whole number within bounds.
    pub fn integer<T: TryFrom<u64>>(&mut self, path: &str, value: &Value<'_>, min: u64, max: u64) -> Option<T> {
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

    /// Remembers where a value stands.
    pub fn note(&mut self, path: &str, value: &Value<'_>) {
        self.source.places.insert(path.into(), value.span());
    }

    /// The value is of another kind than `expected`.
    pub fn mistyped(&mut self, path: &str, value: &Value<'_>, expected: &str) {
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

    /// Something is not there; `example` shows how it would be.
    pub fn missing(&mut self, message: &str, example: &str) {
        self.problems.push(self.source.problem_at(None, message.into(), Some(format!("add\n      {example}"))));
    }

    /// Something is wrong at a place.
    pub fn wrong(&mut self, span: Range<usize>, message: String, hint: Option<String>) {
        self.problems.push(self.source.problem_at(Some(span), message, hint));
    }
}

fn hint_for(name: &str, section: &str, known: &[&str], sections: Sections) -> String {
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let nearest = known.iter().map(|key| (distance(&plain, key), *key)).min();
    if let Some((steps, key)) = nearest
        && steps * 3 <= key.len().max(plain.len())
    {
        return format!("did you mean `{key}`?");
    }
    let elsewhere = sections.iter().find(|(other, keys)| *other != section && keys.contains(&plain.as_str()));
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
