//! Reading the text form.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::bytes::Bytes;
use crate::ids::NodeId;
use crate::machine::{HugePages, Machine, NodeMemory, PciAddress, PciDevice};
use crate::set::CpuSet;
use crate::text::layout::{Groups, Layout, NodeLayout};
use crate::text::shape::Shape;

const ITEMS: &str = "a shape such as `4n2c1t@1G` (first), `nodeN ...`, `dev ADDRESS ...`, or one of smt=, cores=, \
                     packages=, dies=, llcs=, dist=, off=, cpus=";

/// Why a text is not a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the topology at column {column}, `{part}`: {reason}")]
pub struct ParseMachineError {
    /// The part that is wrong.
    pub part: String,
    /// Where that part begins, in characters counted from 1.
    pub column: usize,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// A stretch of the text that knows where it stands.
#[derive(Clone, Copy)]
struct Piece<'a> {
    whole: &'a str,
    start: usize,
    text: &'a str,
}

impl<'a> Piece<'a> {
    /// The piece without surrounding blanks.
    fn trim(self) -> Self {
        let text = self.text.trim_start();
        let start = self.start + self.text.len() - text.len();
        Self { start, text: text.trim_end(), ..self }
    }

    /// The pieces between `separators`, trimmed.
    fn split(self, separators: &'static [char]) -> impl Iterator<Item = Piece<'a>> {
        let base = self.text.as_ptr() as usize;
        self.text.split(separators).map(move |text| {
            Piece { whole: self.whole, start: self.start + (text.as_ptr() as usize - base), text }.trim()
        })
    }

    /// What stands before and after the first `separator`, trimmed.
    fn cut(self, separator: char) -> Option<(Self, Self)> {
        let at = self.text.find(separator)?;
        let after = at + separator.len_utf8();
        let left = Self { text: &self.text[..at], ..self };
        let right = Self { start: self.start + after, text: &self.text[after..], ..self };
        Some((left.trim(), right.trim()))
    }

    fn wrong(self, reason: impl Display) -> ParseMachineError {
        let column = self.whole[..self.start].chars().count() + 1;
        ParseMachineError { part: self.text.into(), column, reason: reason.to_string() }
    }

    fn read<T: FromStr<Err: Display>>(self) -> Result<T, ParseMachineError> {
        self.text.parse().map_err(|error| self.wrong(error))
    }

    fn number(self, what: &str) -> Result<u32, ParseMachineError> {
        self.text.parse().map_err(|_| self.wrong(format!("not a number ({what})")))
    }

    fn hex(self, what: &str) -> Result<u32, ParseMachineError> {
        let digits = self.text.trim_start_matches("0x");
        u32::from_str_radix(digits, 16).map_err(|_| self.wrong(format!("not a hexadecimal number ({what})")))
    }
}

/// Reads a whole text.
pub(super) fn machine(text: &str) -> Result<Machine, ParseMachineError> {
    let whole = Piece { whole: text, start: 0, text };
    let mut layout = Layout::default();
    let mut last_key = "";
    let mut any = false;
    for item in whole.split(&[';', '\n']).filter(|item| !item.text.is_empty()) {
        last_key = read_item(&mut layout, item, any, last_key)?;
        any = true;
    }
    if layout.nodes.is_empty() {
        return Err(whole.trim().wrong(format!("no node; expected {ITEMS}")));
    }
    check(&layout, whole)?;
    Ok(layout.into_machine())
}

/// Reads one item into the layout; gives its key.
fn read_item<'a>(
    layout: &mut Layout,
    item: Piece<'a>,
    any: bool,
    last_key: &str,
) -> Result<&'a str, ParseMachineError> {
    let is_row = item.text.chars().all(|c| c.is_ascii_digit() || c == ',' || c == ' ');
    if is_row && last_key == "dist" {
        layout.distances.get_or_insert_default().push(row(item)?);
        return Ok("dist");
    }
    if Shape::looks_like(item.text) {
        if any {
            return Err(item.wrong("a shape must be the first item"));
        }
        let shape = Shape::parse(item.text)
            .map_err(|(at, reason)| Piece { start: item.start + at, text: &item.text[at..], ..item }.wrong(reason))?;
        shape.fill(layout);
        return Ok("");
    }
    let word_end = item.text.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(item.text.len());
    let key = &item.text[..word_end];
    if let Some(number) = key.strip_prefix("node") {
        let id = Piece { start: item.start + 4, text: number, ..item };
        let rest = Piece { start: item.start + word_end, text: &item.text[word_end..], ..item };
        read_node(layout, NodeId(id.number("the number of a node, as in `node0`")?), rest)?;
        return Ok(key);
    }
    if key == "dev" {
        let rest = Piece { start: item.start + word_end, text: &item.text[word_end..], ..item };
        read_device(layout, rest.trim())?;
        return Ok(key);
    }
    let Some((_, value)) = item.cut('=') else { return Err(item.wrong(format!("not known; expected {ITEMS}"))) };
    match key {
        "smt" => {
            let threads = value.number("threads of a core")?;
            if threads == 0 || layout.threads.is_some_and(|known| known != threads) {
                return Err(value.wrong("must be 1 or more and agree with the shape"));
            }
            layout.threads = Some(threads);
        }
        "cores" => layout.cores = Some(groups(value)?),
        "packages" => layout.packages = Some(groups(value)?),
        "dies" => layout.dies = Some(groups(value)?),
        "llcs" => layout.llcs = Some(groups(value)?),
        "off" => layout.offline = value.read()?,
        "cpus" => layout.loose = value.read()?,
        "dist" if value.text == "none" => layout.distances = Some(Vec::new()),
        "dist" => layout.distances = Some(value.split(&['/']).map(row).collect::<Result<_, _>>()?),
        _ => return Err(item.wrong(format!("not known; expected {ITEMS}"))),
    }
    Ok(key)
}

/// The `key=value` words of an item.
fn words<'a>(rest: Piece<'a>) -> impl Iterator<Item = Result<(Piece<'a>, Piece<'a>), ParseMachineError>> {
    rest.split(&[' ', '\t'])
        .filter(|word| !word.text.is_empty())
        .map(|word| word.cut('=').ok_or_else(|| word.wrong("expected the form `key=value`")))
}

fn read_node(layout: &mut Layout, id: NodeId, rest: Piece<'_>) -> Result<(), ParseMachineError> {
    if id.0 >= 65_536 {
        return Err(rest.wrong("no machine has a node of that number"));
    }
    let of_shape = layout.nodes.contains_key(&id);
    let entry = layout.nodes.entry(id).or_insert_with(|| NodeLayout { llcs: 1, ..NodeLayout::default() });
    let node = &mut entry.node;
    let mut free = None;
    for word in words(rest) {
        let (key, value) = word?;
        match key.text {
            "cpus" if of_shape => return Err(key.wrong(format!("node {id} was given its CPUs before"))),
            "cpus" => node.cpus = value.read()?,
            "mem" => {
                let total: Bytes = value.read()?;
                node.memory = (!total.is_zero()).then_some(NodeMemory { total, free: total });
            }
            "free" => free = Some((value, value.read()?)),
            "huge" => node.huge_pages = pools(value)?,
            _ => return Err(key.wrong("not known of a node; expected cpus=, mem=, free= or huge=")),
        }
    }
    if let Some((piece, free)) = free {
        match &mut node.memory {
            Some(memory) if free <= memory.total => memory.free = free,
            _ => return Err(piece.wrong("more is free than the node has")),
        }
    }
    Ok(())
}

/// `2M:512:100,1G:2`
fn pools(value: Piece<'_>) -> Result<BTreeMap<Bytes, HugePages>, ParseMachineError> {
    let one = |part: Piece<'_>| {
        let form = "expected SIZE:PAGES or SIZE:PAGES:FREE, as in `2M:512`";
        let (size, pages) = part.cut(':').ok_or_else(|| part.wrong(form))?;
        let (total, free) = pages.cut(':').unwrap_or((pages, pages));
        let count = |piece: Piece<'_>| piece.text.parse::<u64>().map_err(|_| piece.wrong(form));
        let (total, free) = (count(total)?, count(free)?);
        if free > total {
            return Err(part.wrong("more pages are free than there are"));
        }
        Ok((size.read()?, HugePages { total, free }))
    };
    value.split(&[',']).map(one).collect()
}

/// `0-3/4-7`, `2:0-3/5:4-7` or `none`.
fn groups(value: Piece<'_>) -> Result<Groups, ParseMachineError> {
    if value.text == "none" {
        return Ok(Groups::new());
    }
    let mut seen = CpuSet::new();
    let mut groups = Groups::new();
    for (index, part) in (0..).zip(value.split(&['/'])) {
        let (id, cpus) = match part.cut(':') {
            Some((id, cpus)) => (id.number("the number of a group")?, cpus),
            None => (index, part),
        };
        let set: CpuSet = cpus.read()?;
        if set.is_empty() {
            return Err(part.wrong("a group without CPUs"));
        }
        if !seen.is_disjoint(&set) {
            return Err(part.wrong("these CPUs are in an earlier group too"));
        }
        if groups.iter().any(|(known, _)| *known == id) {
            return Err(part.wrong(format!("two groups have the number {id}")));
        }
        seen.extend(set.iter());
        groups.push((id, set));
    }
    Ok(groups)
}

fn row(value: Piece<'_>) -> Result<Vec<u32>, ParseMachineError> {
    value.split(&[',']).map(|part| part.number("a distance, 10 for local")).collect()
}

fn read_device(layout: &mut Layout, rest: Piece<'_>) -> Result<(), ParseMachineError> {
    let end = rest.text.find(char::is_whitespace).unwrap_or(rest.text.len());
    let address: PciAddress = Piece { text: &rest.text[..end], ..rest }.read()?;
    let mut device = PciDevice {
        class: 0,
        vendor: 0,
        device: 0,
        driver: None,
        home: None,
        iommu_group: None,
        physical_function: None,
        provides: Vec::new(),
    };
    let short = |value: Piece<'_>| {
        u16::try_from(value.hex("4 digits")?).map_err(|_| value.wrong("more than 4 hexadecimal digits"))
    };
    for word in words(Piece { start: rest.start + end, text: &rest.text[end..], ..rest }) {
        let (key, value) = word?;
        match key.text {
            "node" => device.home = Some(NodeId(value.number("the number of a node")?)),
            "class" => device.class = value.hex("6 digits: base class, subclass, interface")?,
            "vendor" => device.vendor = short(value)?,
            "device" => device.device = short(value)?,
            "driver" => device.driver = Some(value.text.into()),
            "iommu" => device.iommu_group = Some(value.number("an IOMMU group")?),
            "pf" => device.physical_function = Some(value.read()?),
            "gives" => device.provides = value.split(&[',']).map(|name| name.text.to_owned()).collect(),
            _ => {
                let known = "node=, class=, vendor=, device=, driver=, iommu=, pf= or gives=";
                return Err(key.wrong(format!("not known of a device; expected {known}")));
            }
        }
    }
    if layout.devices.insert(address, device).is_some() {
        return Err(rest.wrong("a second device of this address"));
    }
    Ok(())
}

/// What can only be checked when all is known.
fn check(layout: &Layout, whole: Piece<'_>) -> Result<(), ParseMachineError> {
    let whole = whole.trim();
    let mut seen = CpuSet::new();
    for (id, node) in &layout.nodes {
        if !seen.is_disjoint(&node.node.cpus) {
            let twice = seen.intersection(&node.node.cpus);
            return Err(whole.wrong(format!("CPUs {twice} of node {id} are on an earlier node too")));
        }
        seen.extend(node.node.cpus.iter());
    }
    if !seen.is_disjoint(&layout.loose) {
        let twice = seen.intersection(&layout.loose);
        return Err(whole.wrong(format!("CPUs {twice} of cpus= (those on no node) are on a node")));
    }
    seen.extend(layout.loose.iter());
    for (name, groups) in
        [("cores", &layout.cores), ("packages", &layout.packages), ("dies", &layout.dies), ("llcs", &layout.llcs)]
    {
        let all: CpuSet = groups.iter().flatten().flat_map(|(_, cpus)| cpus.iter()).collect();
        let strange = all.difference(&seen).difference(&layout.offline);
        if !strange.is_empty() {
            return Err(
                whole.wrong(format!("CPUs {strange} in {name}= are on no node (add them to one, to cpus= or to off=)"))
            );
        }
        let missing = seen.difference(&layout.offline).difference(&all);
        if name == "cores" && groups.is_some() && !missing.is_empty() {
            return Err(whole.wrong(format!("CPUs {missing} are in no core of cores=")));
        }
    }
    let nodes = layout.nodes.len();
    if let Some(rows) = &layout.distances
        && !rows.is_empty()
        && (rows.len() != nodes || rows.iter().any(|row| row.len() != nodes))
    {
        return Err(whole.wrong(format!("dist= must have {nodes} rows of {nodes} numbers, one for each node")));
    }
    if let Some((address, device)) =
        layout.devices.iter().find(|(_, device)| device.home.is_some_and(|home| !layout.nodes.contains_key(&home)))
    {
        let home = device.home.unwrap_or(NodeId(0));
        return Err(whole.wrong(format!("device {address} is on node {home}, which is not there")));
    }
    Ok(())
}
