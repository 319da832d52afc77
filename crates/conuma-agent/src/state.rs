//! What the agent must not forget while the guest is up: the holding, and other people's wishes
//! that it has cut. Kept as a text file in a directory that ends with the boot (`/run`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use conuma_agent_proto::Generation;
use conuma_linux::procfs::Tid;
use conuma_topology::GuestCpuSet;

use crate::wish::Touched;

/// A task, for the whole boot: thread ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// Thread id.
    pub tid: Tid,
    /// When it began, in ticks after boot.
    pub start_ticks: u64,
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The newest generation seen.
    pub newest: Generation,
    /// The last holding applied.
    pub holding: Option<GuestCpuSet>,
    /// `cpuset.cpus` of top-level cgroups, by name.
    pub cgroups: BTreeMap<String, Touched>,
    /// Affinity of interrupts, by number.
    pub interrupts: BTreeMap<u32, Touched>,
    /// Affinity of interrupts to come.
    pub default_interrupt: Option<Touched>,
    /// Mask of unbound kernel work.
    pub workqueues: Option<Touched>,
    /// Affinity of kernel threads that can be moved.
    pub kernel_threads: BTreeMap<TaskKey, Touched>,
    /// Tasks' own affinity wishes, on kernels that forget them.
    pub own_affinities: BTreeMap<TaskKey, GuestCpuSet>,
}

const HEADER: &str = "conuma-agent state 1";

impl State {
    /// The text form. Untouched masks are left out: reading them anew says the same.
    pub fn to_text(&self, boot_id: &str) -> String {
        let list = |set: &GuestCpuSet| if set.is_empty() { "-".to_owned() } else { set.to_string() };
        let pair = |touched: &Touched| format!("{} {}", list(&touched.wish), list(&touched.wrote));
        let mut text = format!("{HEADER}\nboot {boot_id}\nnewest {}\n", self.newest);
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        };
        if let Some(holding) = &self.holding {
            line(format_args!("holding {}", list(holding)));
        }
        for touched in self.default_interrupt.iter().filter(|touched| !touched.is_untouched()) {
            line(format_args!("default-interrupt {}", pair(touched)));
        }
        for touched in self.workqueues.iter().filter(|touched| !touched.is_untouched()) {
            line(format_args!("workqueues {}", pair(touched)));
        }
        for (irq, touched) in self.interrupts.iter().filter(|(_, touched)| !touched.is_untouched()) {
            line(format_args!("interrupt {irq} {}", pair(touched)));
        }
        for (key, touched) in self.kernel_threads.iter().filter(|(_, touched)| !touched.is_untouched()) {
            line(format_args!("kernel-thread {} {} {}", key.tid, key.start_ticks, pair(touched)));
        }
        for (key, own) in &self.own_affinities {
            line(format_args!("own-affinity {} {} {}", key.tid, key.start_ticks, list(own)));
        }
        for (name, touched) in self.cgroups.iter().filter(|(name, touched)| {
            // A name with a line break (nobody does that) is forgotten at a restart.
            !touched.is_untouched() && !name.contains('\n')
        }) {
            line(format_args!("cgroup {} {name}", pair(touched)));
        }
        text
    }

    /// Reads the text form: `None` if it is of another boot or form. Lines that make no sense are
    /// left out: the file is a hint.
    pub fn from_text(text: &str, boot_id: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEADER || lines.next()?.strip_prefix("boot ")? != boot_id {
            return None;
        }
        let mut state = Self::default();
        for line in lines {
            let _ = state.take_line(line);
        }
        Some(state)
    }

    fn take_line(&mut self, line: &str) -> Option<()> {
        fn list(text: &str) -> Option<GuestCpuSet> {
            if text == "-" { Some(GuestCpuSet::new()) } else { text.parse().ok() }
        }
        fn touched<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Touched> {
            Some(Touched { wish: list(words.next()?)?, wrote: list(words.next()?)? })
        }
        fn key<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<TaskKey> {
            let tid = Tid(words.next()?.parse().ok()?);
            Some(TaskKey { tid, start_ticks: words.next()?.parse().ok()? })
        }
        let mut words = line.splitn(4, ' ');
        match words.next()? {
            "newest" => self.newest = Generation(words.next()?.parse().ok()?),
            "holding" => self.holding = Some(list(words.next()?)?),
            "default-interrupt" => self.default_interrupt = Some(touched(&mut words)?),
            "workqueues" => self.workqueues = Some(touched(&mut words)?),
            "interrupt" => {
                let irq = words.next()?.parse().ok()?;
                self.interrupts.insert(irq, touched(&mut words)?);
            }
            "cgroup" => {
                let touched = touched(&mut words)?;
                self.cgroups.insert(words.next()?.to_owned(), touched);
            }
            "kernel-thread" => {
                let key = key(&mut words)?;
                self.kernel_threads.insert(key, touched(&mut words.next()?.split(' '))?);
            }
            "own-affinity" => {
                let key = key(&mut words)?;
                self.own_affinities.insert(key, list(words.next()?)?);
            }
            _ => {}
        }
        Some(())
    }
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    boot_id: String,
    saved: String,
}

impl StateFile {
    /// Reads what is remembered of this boot; nothing if there is no such file.
    pub fn open(dir: &Path, boot_id: String) -> io::Result<(Self, State)> {
        fs::create_dir_all(dir)?;
        let path = dir.join("state");
        let saved = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let state = State::from_text(&saved, &boot_id).unwrap_or_default();
        Ok((Self { path, boot_id, saved }, state))
    }

    /// Writes it, whole or not at all, if it has changed.
    pub fn save(&mut self, state: &State) -> io::Result<()> {
        let text = state.to_text(&self.boot_id);
        if text == self.saved {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        fs::write(&new, &text)?;
        fs::rename(&new, &self.path)?;
        self.saved = text;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(wish: &str, wrote: &str) -> Touched {
        Touched { wish: wish.parse().unwrap(), wrote: wrote.parse().unwrap() }
    }

    fn sample() -> State {
        let key = TaskKey { tid: Tid(12), start_ticks: 3400 };
        State {
            newest: Generation(9),
            holding: Some("0-3".parse().unwrap()),
            cgroups: BTreeMap::from([
                ("system.slice".to_owned(), touched("", "0-3")),
                ("with space".to_owned(), touched("2-5", "2-3")),
            ]),
            interrupts: BTreeMap::from([(24, touched("0-7", "0-3"))]),
            default_interrupt: Some(touched("0-7", "0-3")),
            workqueues: Some(touched("0-7", "0-3")),
            kernel_threads: BTreeMap::from([(key, touched("0-7", "0-3"))]),
            own_affinities: BTreeMap::from([(key, "2,6".parse().unwrap())]),
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let text = sample().to_text("b00t");
        assert_eq!(State::from_text(&text, "b00t"), Some(sample()));
    }

    #[test]
    fn another_boot_is_forgotten() {
        assert_eq!(State::from_text(&sample().to_text("b00t"), "other"), None);
        assert_eq!(State::from_text("", "b00t"), None);
    }

    #[test]
    fn nonsense_is_left_out() {
        let text = sample().to_text("b00t") + "interrupt x 1 2\ncgroup\nowner\n\nnewest\n";
        assert_eq!(State::from_text(&text, "b00t"), Some(sample()));
    }

    #[test]
    fn untouched_masks_need_no_memory() {
        let state = State { workqueues: Some(touched("0-7", "0-7")), ..State::default() };
        assert_eq!(State::from_text(&state.to_text("b"), "b"), Some(State::default()));
    }

    #[test]
    fn the_file_survives_a_restart_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, state) = StateFile::open(dir.path(), "b00t".into()).unwrap();
        assert_eq!(state, State::default());
        file.save(&sample()).unwrap();
        assert_eq!(StateFile::open(dir.path(), "b00t".into()).unwrap().1, sample());
        fs::write(dir.path().join("state"), "rubbish").unwrap();
        assert_eq!(StateFile::open(dir.path(), "b00t".into()).unwrap().1, State::default());
    }
}
