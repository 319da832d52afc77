//! Reading a VM file, keeping where each value stands.

use conuma_topology::{Bytes, PciAddress, VmName};

use super::{Agent, Boot, BootSource, CoreWish, MEMORY_UNIT, MemoryWish, SpecError, VmSpec, Wish};
use crate::form::{Reader, Sections, Source, Table, Value, WISH_KEYS};

const TOP_KEYS: &[&str] =
    &["name", "weight", "agent", "cid", "guarantee", "initial", "limit", "boot", "devices", "qemu_args"];
const BOOT_KEYS: &[&str] = &["memory_per_node", "kernel", "initrd", "cmdline", "disk"];
const DEFAULT_WEIGHT: u32 = 100;
const DEFAULT_BOOT_MEMORY: Bytes = Bytes::mib(256);
/// Vsock addresses below are those of the hypervisor, the machine itself and the host.
const FIRST_CID: u32 = 3;

const SECTIONS: Sections = &[("guarantee", WISH_KEYS), ("boot", BOOT_KEYS), ("", TOP_KEYS)];

pub(super) fn parse(text: &str, file_name: &str) -> Result<VmSpec, SpecError> {
    let (spec, source) = Reader::read(text, file_name, SECTIONS, |reader, top| Draft(reader).spec(top))?;
    Ok(VmSpec { source, ..spec })
}

/// A VM file being read.
struct Draft<'a>(&'a mut Reader);

impl Draft<'_> {
    fn spec(&mut self, top: &Table<'_>) -> Option<VmSpec> {
        self.0.keys("", top, TOP_KEYS);
        let name = match top.get("name") {
            Some(value) => self.0.parsed::<VmName>("name", value, "text such as \"db-1\""),
            None => {
                self.0.missing("`name` is missing", "name = \"db-1\"");
                None
            }
        };
        let guarantee = match top.get("guarantee") {
            Some(value) => self.0.wish("guarantee", value),
            None => {
                self.0.missing("`[guarantee]` is missing", "[guarantee]\n      cores = 2\n      memory = \"1G\"");
                None
            }
        };
        let weight = top.get("weight").and_then(|v| self.0.integer("weight", v, 1, 10_000));
        let cid = top.get("cid").and_then(|v| self.0.integer("cid", v, FIRST_CID.into(), (u32::MAX - 1).into()));
        let agent = top.get("agent").and_then(|v| self.0.parsed::<Agent>("agent", v, "\"expected\" or \"none\""));
        let initial = top.get("initial").and_then(|v| self.0.wish("initial", v));
        let limit = top.get("limit").and_then(|v| self.0.wish("limit", v));
        let boot = match top.get("boot") {
            Some(value) => self.boot(value),
            None => Some(Boot { memory_per_node: DEFAULT_BOOT_MEMORY, source: BootSource::Other }),
        };
        let devices = top.get("devices").map(|v| self.devices(v)).unwrap_or_default();
        let qemu_args = top.get("qemu_args").map(|v| self.0.texts("qemu_args", v)).unwrap_or_default();
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

    fn boot(&mut self, value: &Value<'_>) -> Option<Boot> {
        let table = self.0.table("boot", value)?;
        self.0.keys("boot", table, BOOT_KEYS);
        let memory_per_node = match table.get("memory_per_node") {
            Some(value) => self.0.bytes("boot.memory_per_node", value),
            None => Some(DEFAULT_BOOT_MEMORY),
        };
        if let (Some(bytes), Some(value)) = (memory_per_node, table.get("memory_per_node"))
            && (bytes.is_zero() || bytes != bytes.round_down(MEMORY_UNIT))
        {
            let message = format!("boot memory of {} bytes is not a positive multiple of {MEMORY_UNIT}", bytes.0);
            let near = bytes.round_up(MEMORY_UNIT).max(MEMORY_UNIT);
            self.0.wrong(value.span(), message, Some(format!("the next that fits is \"{near}\"")));
        }
        let mut text = |key: &str| table.get(key).and_then(|v| self.0.text(&format!("boot.{key}"), v));
        let (kernel, initrd, cmdline, disk) = (text("kernel"), text("initrd"), text("cmdline"), text("disk"));
        if kernel.is_none() {
            for key in ["initrd", "cmdline"] {
                if let Some(value) = table.get(key) {
                    let hint = "add `kernel = \"/path/to/vmlinuz\"`, or remove it".to_owned();
                    self.0.wrong(value.span(), format!("`{key}` is of no use without `kernel`"), Some(hint));
                }
            }
        }
        if let (Some(_), Some(value)) = (&kernel, table.get("disk")) {
            let hint = "with a kernel, attach disks through `qemu_args`".to_owned();
            self.0.wrong(value.span(), "`kernel` and `disk` both say what to boot".into(), Some(hint));
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
        for (index, item) in self.0.items("devices", value).iter().enumerate() {
            let path = format!("devices.{index}");
            let Some(address) = self.0.parsed::<PciAddress>(&path, item, "an address such as \"0000:3b:00.0\"") else {
                continue;
            };
            if devices.contains(&address) {
                self.0.wrong(item.span(), format!("device {address} is listed twice"), None);
            } else {
                devices.push(address);
            }
        }
        devices
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
                    self.0.disagrees(&format!("{path}.memory"), message, hint.clone());
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
                self.0.disagrees(&format!("{path}.{key}"), message, hint);
            }
        }
    }
}
