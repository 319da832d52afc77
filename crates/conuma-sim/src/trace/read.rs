//! Reading traces. A line that cannot be read ends it, with its number.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_topology::{Bytes, NodeId, VmName};

use super::{Point, Trace, TraceVm, VmTerms};

/// Why a text is not a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line is wrong.
    #[error("{file}:{line}: {what}")]
    Line {
        /// Where.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The whole is wrong.
    #[error("{file}: {what}")]
    Whole {
        /// Where.
        file: String,
        /// What is wrong.
        what: String,
    },
}

/// Longest trace.
const LONGEST: f64 = 366.0 * 86_400.0;

/// Most that a VM can want: more is a slip of the pen.
const MOST_CORES: f64 = 65_536.0;

impl Trace {
    /// Reads a trace; `file` appears in errors, and names it.
    pub fn parse(text: &str, file: &str) -> Result<Self, TraceError> {
        let mut reader = Reader::default();
        for (number, line) in text.lines().enumerate() {
            reader.line(line.trim()).map_err(|what| TraceError::Line { file: file.into(), line: number + 1, what })?;
        }
        reader.finish(name_of(file)).map_err(|what| TraceError::Whole { file: file.into(), what })
    }
}

fn name_of(file: &str) -> String {
    let last = file.rsplit('/').next().unwrap_or(file);
    last.strip_suffix(".csv").unwrap_or(last).to_owned()
}

/// Which column is where.
#[derive(Debug, Clone, Copy)]
struct Columns {
    seconds: usize,
    vm: usize,
    cores: usize,
    memory: Option<usize>,
}

#[derive(Default)]
struct Reader {
    host: Option<String>,
    seconds: Option<f64>,
    columns: Option<Columns>,
    vms: Vec<TraceVm>,
    places: BTreeMap<VmName, usize>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(comment) = line.strip_prefix('#') {
            return self.comment(comment.trim());
        }
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        match self.columns {
            None if cells.iter().any(|cell| cell.parse::<f64>().is_ok()) => {
                let columns = Columns { seconds: 0, vm: 1, cores: 2, memory: (cells.len() > 3).then_some(3) };
                self.columns = Some(columns);
                self.point(&cells, columns)
            }
            None => {
                self.columns = Some(head(&cells)?);
                Ok(())
            }
            Some(columns) => self.point(&cells, columns),
        }
    }

    /// `host SHAPE`, `seconds N`, `vm NAME ...`; any other is for people.
    fn comment(&mut self, text: &str) -> Result<(), String> {
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match word {
            "host" => self.host = Some(rest.to_owned()),
            "seconds" => self.seconds = Some(seconds(rest)?),
            "vm" => self.terms(rest)?,
            _ => {}
        }
        Ok(())
    }

    fn terms(&mut self, text: &str) -> Result<(), String> {
        let mut words = text.split_whitespace();
        let name = words.next().ok_or("`# vm` without a name")?;
        let place = self.place(name)?;
        let mut terms = VmTerms::default();
        for (number, word) in words.enumerate() {
            let (key, value) = match word.split_once('=') {
                Some(pair) => pair,
                None => {
                    let keys = ["weight", "guarantee", "limit", "kind"];
                    (*keys.get(number).ok_or_else(|| format!("`{word}` is one too many"))?, word)
                }
            };
            set_term(&mut terms, key, value)?;
        }
        if let (Some(guarantee), Some(limit)) = (terms.guarantee, terms.limit)
            && guarantee > limit
        {
            return Err(format!("{name}: a guarantee of {guarantee} cores is above the limit of {limit}"));
        }
        self.vms[place].terms = terms;
        Ok(())
    }

    fn place(&mut self, name: &str) -> Result<usize, String> {
        let name: VmName = name.parse().map_err(|error: conuma_topology::ParseVmNameError| error.to_string())?;
        let next = self.vms.len();
        let place = *self.places.entry(name.clone()).or_insert(next);
        if place == next {
            self.vms.push(TraceVm { name, terms: VmTerms::default(), points: Vec::new() });
        }
        Ok(place)
    }

    fn point(&mut self, cells: &[&str], columns: Columns) -> Result<(), String> {
        let cell = |place: usize, what: &str| {
            cells.get(place).copied().filter(|cell| !cell.is_empty()).ok_or_else(|| format!("no {what}"))
        };
        let at = Duration::from_secs_f64(seconds(cell(columns.seconds, "time")?)?);
        let cores = number(cell(columns.cores, "cores")?, "cores", MOST_CORES)?;
        let memory = match columns.memory.and_then(|place| cells.get(place)).filter(|cell| !cell.is_empty()) {
            Some(cell) => Some(Bytes::mib(number(cell, "memory_mib", 1e9)? as u64)),
            None => None,
        };
        let place = self.place(cell(columns.vm, "VM")?)?;
        let points = &mut self.vms[place].points;
        let before = points.last().copied();
        if before.is_some_and(|before| at < before.at) {
            return Err(format!("the times of {} run backwards", cells[columns.vm]));
        }
        let memory = memory.or(before.map(|before| before.memory)).unwrap_or_default();
        if before.is_some_and(|before| before.at == at) {
            points.pop();
        }
        points.push(Point { at, cores, memory });
        Ok(())
    }

    fn finish(self, name: String) -> Result<Trace, String> {
        if self.vms.is_empty() {
            return Err("it says nothing of any VM".into());
        }
        let times: std::collections::BTreeSet<Duration> =
            self.vms.iter().flat_map(|vm| vm.points.iter().map(|point| point.at)).collect();
        let last = times.last().copied().unwrap_or_default();
        // The last value lasts as long as the one before.
        let before = times.iter().rev().nth(1).copied().unwrap_or_default();
        let end = match self.seconds {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None => last + last.saturating_sub(before).clamp(Duration::from_secs(1), Duration::from_secs(60)),
        };
        if end.is_zero() {
            return Err("it lasts no time".into());
        }
        Ok(Trace { name, host: self.host, end, vms: self.vms })
    }
}

fn head(cells: &[&str]) -> Result<Columns, String> {
    let find = |names: &[&str]| cells.iter().position(|cell| names.contains(&cell.to_ascii_lowercase().as_str()));
    let need = |names: &[&str]| find(names).ok_or_else(|| format!("no column `{}` in `{}`", names[0], cells.join(",")));
    Ok(Columns {
        seconds: need(&["seconds", "time", "second", "t"])?,
        vm: need(&["vm", "name"])?,
        cores: need(&["cores", "demand", "cpus"])?,
        memory: find(&["memory_mib", "mem_mib", "memory"]),
    })
}

fn set_term(terms: &mut VmTerms, key: &str, value: &str) -> Result<(), String> {
    if value == "-" {
        return Ok(());
    }
    let whole = || value.parse::<usize>().map_err(|_| format!("{key}: `{value}` is not a whole number"));
    match key {
        "weight" => {
            let weight = value.parse().ok().filter(|weight| (1..=10_000).contains(weight));
            terms.weight = weight.ok_or_else(|| format!("weight: `{value}` is not from 1 to 10,000"))?;
        }
        "guarantee" => terms.guarantee = Some(whole()?),
        "limit" => terms.limit = Some(whole()?.max(1)),
        "kind" => terms.kind = value.parse()?,
        "memory" => terms.memory = Some(value.parse::<Bytes>().map_err(|error| error.to_string())?),
        "node" => terms.node = Some(value.parse().map(NodeId).map_err(|_| format!("node: `{value}` is not a node"))?),
        other => return Err(format!("`{other}` is not known: weight, guarantee, limit, kind, memory, node")),
    }
    Ok(())
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, "seconds", LONGEST)
}

fn number(text: &str, what: &str, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{what}: `{text}` is not a number"))?;
    if (0.0..=most).contains(&value) { Ok(value) } else { Err(format!("{what}: {text} is not from 0 to {most}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Kind;

    fn wrong(text: &str, expected: &str) {
        let error = Trace::parse(text, "some.csv").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_trace_is_read_with_its_terms() {
        let text = "# made by hand\n# host 1n4c1t@2G\n# vm a weight=200 guarantee=2 limit=4 kind=batch\n# vm b 50 - 3 hpc\n\
                    seconds,vm,cores,memory_mib\n0,a,1.5,512\n0,b,0\n2,a,3,\n4,b,2,100\n";
        let trace = Trace::parse(text, "dir/some.csv").unwrap();
        assert_eq!((trace.name.as_str(), trace.host.as_deref(), trace.end.as_secs()), ("some", Some("1n4c1t@2G"), 6));
        let [a, b] = trace.vms.as_slice() else { panic!("{trace:?}") };
        assert_eq!(
            (a.terms.weight, a.terms.guarantee, a.terms.limit, a.terms.kind),
            (200, Some(2), Some(4), Kind::Batch)
        );
        assert_eq!((b.terms.weight, b.terms.guarantee, b.terms.limit, b.terms.kind), (50, None, Some(3), Kind::Hpc));
        assert_eq!(
            a.at(Duration::from_secs(3)),
            Point { at: Duration::from_secs(2), cores: 3.0, memory: Bytes::mib(512) }
        );
    }

    #[test]
    fn a_trace_without_any_head_is_read() {
        let trace = Trace::parse("0,a,1\n10,a,2\n", "x").unwrap();
        assert_eq!((trace.vms.len(), trace.end.as_secs()), (1, 20));
    }

    #[test]
    fn errors_name_their_line() {
        wrong("seconds,vm,cores\n0,a,1\nx,a,1\n", "some.csv:3: seconds: `x` is not a number");
        wrong("seconds,vm,cores\n0,a,-1\n", "some.csv:2: cores: -1 is not from 0");
        wrong("seconds,vm,cores\n0,a,nan\n", "some.csv:2: cores: nan is not from 0");
        wrong("seconds,vm,cores\n5,a,1\n4,a,1\n", "some.csv:3: the times of a run backwards");
        wrong("seconds,vm,cores\n5,../a,1\n", "some.csv:2: `../a` cannot name a VM");
        wrong("seconds,vm,load\n", "some.csv:1: no column `cores`");
        wrong("# vm a kind=cloud\n", "some.csv:1: `cloud` is no kind of load");
        wrong("# vm a guarantee=4 limit=2\n", "above the limit");
        wrong("0,a\n", "some.csv:1: no cores");
        wrong("", "some.csv: it says nothing of any VM");
    }
}
