//! The exact command line of a VM: a pure function of its plan and of what QEMU can do.

use std::path::Path;

use conuma_binding::{Accel, BindingPlan, BootSource, LlcLevel, Slot, Smp};
use conuma_topology::{Bytes, VcpuId};

use crate::facts::HypervisorFacts;

/// Address space for virtio-mem devices beyond what they need, each: room for alignment.
const DEVICE_SLACK: Bytes = Bytes::gib(1);
/// The guest's console text that is kept in memory. Bounded: a guest must not fill the host's disk.
const CONSOLE_BYTES: u32 = 64 << 10;
/// virtio-mem devices sit in these PCI slots, eight to a slot, so that many nodes fit and every guest finds its
/// devices at the same place; slots below are for what the VM file brings.
const FIRST_MEMORY_SLOT: usize = 0x10;
/// The largest APIC id that interrupts reach without remapping.
const LARGEST_PLAIN_APIC_ID: u64 = 254;

/// QEMU's arguments for `plan`, without the program's name.
pub fn command_line(plan: &BindingPlan, facts: &HypervisorFacts) -> Vec<String> {
    let mut args = Args(Vec::new());
    let cpus = CpuGrid::new(plan, facts);
    args.add("-name", format!("guest={},debug-threads=on", plan.name));
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    args.add("-display", "none");
    args.flag("-S");
    machine(plan, facts, &mut args);
    args.add("-overcommit", "cpu-pm=off");
    cpus.smp(&mut args);
    memory(plan, &mut args);
    cpus.nodes(&mut args);
    distances(plan, &mut args);
    cpus.devices(&mut args);
    // Before virtio-mem: QEMU then knows how many memory slots vhost has when it divides them.
    if let Some(cid) = plan.cid {
        args.add("-device", format!("vhost-vsock-pci,id=vsock0,guest-cid={cid}"));
    }
    flexible_memory(plan, facts, &mut args);
    boot(plan, &mut args);
    args.add("-qmp", format!("unix:{},server=on,wait=off", escaped(&plan.files.qmp_socket)));
    args.add("-pidfile", plan.files.pid_file.display().to_string());
    if !plan.qemu_args.iter().any(|arg| arg == "-serial" || arg == "-nographic") {
        args.add("-chardev", format!("ringbuf,id=console,size={CONSOLE_BYTES}"));
        args.add("-serial", "chardev:console");
    }
    args.0.extend(plan.qemu_args.iter().cloned());
    // Last: a device without a `bus=` goes to the newest host bridge before it.
    passed_devices(plan, &mut args);
    args.0
}

/// A command for people to read and shells to run: one option a line.
pub fn shell_text(program: &Path, args: &[String]) -> String {
    let mut text = quoted(&program.display().to_string());
    for arg in args {
        text.push_str(if arg.starts_with('-') { " \\\n  " } else { " " });
        text.push_str(&quoted(arg));
    }
    text.push('\n');
    text
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

/// In QEMU's option lists a comma ends a value unless it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn machine(plan: &BindingPlan, facts: &HypervisorFacts, args: &mut Args) {
    let remapping = plan.replica.smp.largest_apic_id() > LARGEST_PLAIN_APIC_ID;
    let mut machine = String::from("q35,hpet=off");
    match plan.accel {
        Accel::Kvm => {
            machine.push_str(",accel=kvm");
            if remapping {
                machine.push_str(",kernel-irqchip=split");
            }
        }
        Accel::Tcg => machine.push_str(",accel=tcg"),
    }
    // One per die is what QEMU does anyway.
    let level = match plan.replica.llc {
        Some(LlcLevel::Core) => Some("core"),
        Some(LlcLevel::Module) => Some("module"),
        Some(LlcLevel::Socket) if plan.replica.smp.dies > 1 => Some("socket"),
        Some(LlcLevel::Die | LlcLevel::Socket) | None => None,
    };
    if let Some(level) = level.filter(|_| facts.smp_cache) {
        machine.push_str(&format!(",smp-cache.0.cache=l3,smp-cache.0.topology={level}"));
    }
    args.add("-machine", machine);
    let topoext = if facts.topoext && plan.accel == Accel::Kvm { ",topoext=on" } else { "" };
    args.add("-cpu", format!("{}{topoext}", cpu_model(plan.accel)));
    if remapping {
        // Devices passed through must see the guest's mappings.
        let caching = if plan.bridges.is_empty() { "" } else { ",caching-mode=on" };
        args.add("-device", format!("intel-iommu,intremap=on,eim=on{caching}"));
    }
}

fn cpu_model(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    }
}

/// The grid as this QEMU can express it: without modules (QEMU before 10.0) their cores are cores of the die. The number
/// of a place is the same either way.
struct CpuGrid<'a> {
    plan: &'a BindingPlan,
    smp: Smp,
}

impl<'a> CpuGrid<'a> {
    fn new(plan: &'a BindingPlan, facts: &HypervisorFacts) -> Self {
        let smp = plan.replica.smp;
        let smp = if facts.smp_cache { smp } else { Smp { modules: 1, cores: smp.modules * smp.cores, ..smp } };
        Self { plan, smp }
    }

    fn smp(&self, args: &mut Args) {
        let Smp { sockets, dies, modules, cores, threads } = self.smp;
        // In an irregular grid only the first place is filled here, the others by devices of their own.
        let cpus = if self.plan.replica.is_regular() { self.plan.replica.vcpus.len() } else { 1 };
        let modules = if modules > 1 { format!(",modules={modules}") } else { String::new() };
        let places = self.smp.places();
        args.add(
            "-smp",
            format!(
                "cpus={cpus},maxcpus={places},sockets={sockets},dies={dies}{modules},cores={cores},threads={threads}"
            ),
        );
    }

    /// Which places belong to which node, in as few words as possible: whole sockets, else dies, modules, cores.
    fn nodes(&self, args: &mut Args) {
        let nodes = self.plan.replica.nodes_of_places();
        let smp = &self.smp;
        let sides = [smp.dies * smp.modules * smp.cores * smp.threads, smp.modules * smp.cores * smp.threads];
        let sides = [sides[0], sides[1], smp.cores * smp.threads, smp.threads, 1];
        let mut place = 0;
        while let Some(node) = nodes.get(place) {
            let of_one_node = |size: u32| {
                place.is_multiple_of(size as usize)
                    && nodes.get(place..place + size as usize).is_some_and(|part| part.iter().all(|n| n == node))
            };
            let level = sides.iter().position(|size| of_one_node(*size)).unwrap_or(sides.len() - 1);
            let slot = self.smp.slot(VcpuId(place as u32));
            args.add("-numa", format!("cpu,node-id={node},{}", self.place_text(slot, level)));
            place += sides[level] as usize;
        }
    }

    /// The vCPUs of an irregular grid, apart from the first.
    fn devices(&self, args: &mut Args) {
        if self.plan.replica.is_regular() {
            return;
        }
        for vcpu in self.plan.replica.vcpus.iter().filter(|vcpu| vcpu.id != VcpuId(0)) {
            let place = self.place_text(self.smp.slot(vcpu.id), 4);
            args.add("-device", format!("{}-x86_64-cpu,id=cpu{},{place}", cpu_model(self.plan.accel), vcpu.id));
        }
    }

    /// A place down to a level: 0 names only the socket, 4 all. QEMU refuses ids of sides that have one part only.
    fn place_text(&self, slot: Slot, level: usize) -> String {
        let mut text = format!("socket-id={}", slot.socket);

        let parts = [
            ("die-id", slot.die, self.smp.dies > 1),
            ("module-id", slot.module, self.smp.modules > 1),
            ("core-id", slot.core, true),
            ("thread-id", slot.thread, true),
        ];
        for (name, number, _) in parts.into_iter().take(level).filter(|(.., there)| *there) {
            text.push_str(&format!(",{name}={number}"));
        }
        text
    }
}

fn memory(plan: &BindingPlan, args: &mut Args) {
    let boot: Bytes = plan.memory.iter().map(|node| node.boot).sum();
    let flexible: Bytes =
        plan.memory.iter().filter(|node| node.is_flexible()).map(|node| node.maximum + DEVICE_SLACK).sum();
    if flexible.is_zero() {
        args.add("-m", format!("size={}", size(boot)));
    } else {
        args.add("-m", format!("size={},maxmem={}", size(boot), size(boot + flexible)));
    }
    for node in &plan.memory {
        if node.boot.is_zero() {
            args.add("-numa", format!("node,nodeid={}", node.node));
            continue;
        }
        let id = format!("boot{}", node.node);
        args.add("-object", backend(&id, node.boot, node.host.0));
        args.add("-numa", format!("node,nodeid={},memdev={id}", node.node));
    }
}

fn flexible_memory(plan: &BindingPlan, facts: &HypervisorFacts, args: &mut Args) {
    for (index, node) in plan.memory.iter().filter(|node| node.is_flexible()).enumerate() {
        let id = node.device_id();
        args.add("-object", backend(&format!("{id}-backend"), node.maximum, node.host.0));
        let (slot, function) = (FIRST_MEMORY_SLOT + index / 8, index % 8);
        let mut device = format!(
            "virtio-mem-pci,id={id},memdev={id}-backend,node={},requested-size=0,block-size={},addr={slot:#x}.{function}",
            node.node,
            size(plan.memory_unit)
        );
        // The first function of a slot says that there are more.
        if function == 0 {
            device.push_str(",multifunction=on");
        }
        if facts.unplugged_inaccessible {
            device.push_str(",unplugged-inaccessible=on");
        }
        if facts.dynamic_memslots {
            device.push_str(",dynamic-memslots=on");
        }
        args.add("-device", device);
    }
}

fn backend(id: &str, bytes: Bytes, host: u32) -> String {
    format!("memory-backend-ram,id={id},size={},host-nodes={host},policy=bind,reserve=off", size(bytes))
}

/// A size as QEMU reads it: whole MiB where it is.
fn size(bytes: Bytes) -> String {
    if bytes == bytes.round_down(Bytes::mib(1)) { format!("{}M", bytes.0 >> 20) } else { format!("{}B", bytes.0) }
}

fn distances(plan: &BindingPlan, args: &mut Args) {
    let rows = &plan.replica.distances;
    let at = |from: usize, to: usize| rows.get(from).and_then(|row| row.get(to)).copied();
    // QEMU mirrors what is given in one direction only, if that holds for all.
    let count = rows.len();
    let symmetric = (0..count).all(|from| (0..from).all(|to| at(from, to) == at(to, from)));
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from && (!symmetric || *to > from)) {
            if let Some(distance) = at(from, to) {
                args.add("-numa", format!("dist,src={from},dst={to},val={distance}"));
            }
        }
    }
}

fn passed_devices(plan: &BindingPlan, args: &mut Args) {
    let mut port = 0;
    for bridge in &plan.bridges {
        let bus = match (bridge.node, bridge.bus) {
            (Some(node), Some(bus)) => {
                args.add("-device", format!("pxb-pcie,id=pxb{node},bus=pcie.0,bus_nr={bus},numa_node={node}"));
                format!("pxb{node}")
            }
            _ => "pcie.0".into(),
        };
        for device in &bridge.devices {
            args.add("-device", format!("pcie-root-port,id=port{port},bus={bus},chassis={}", port + 1));
            args.add("-device", format!("vfio-pci,id=passed{port},host={device},bus=port{port}"));
            port += 1;
        }
    }
}

fn boot(plan: &BindingPlan, args: &mut Args) {
    match &plan.boot {
        BootSource::Kernel { kernel, initrd, cmdline } => {
            args.add("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                args.add("-initrd", initrd.display().to_string());
            }
            if !cmdline.is_empty() {
                args.add("-append", cmdline.clone());
            }
        }
        BootSource::Disk(path) => {
            let format = if path.extension().is_some_and(|ending| ending == "qcow2") { "qcow2" } else { "raw" };
            args.add(
                "-blockdev",
                format!("driver={format},node-name=disk0,file.driver=file,file.filename={}", escaped(path)),
            );
            args.add("-device", "virtio-blk-pci,id=disk0,drive=disk0,bootindex=1");
        }
        BootSource::Other => {}
    }
}
