//! What the installed QEMU can do: asked of itself, once.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{LaunchError, Process, remove_file};
use crate::error::HypervisorError;
use crate::facts::HypervisorFacts;
use crate::qmp::{Qmp, QmpError};

const BUDGET: Duration = Duration::from_secs(20);

/// Runs `program` without a machine and asks it. `dir` is for its socket and log, which are removed again.
pub(super) async fn probe(program: &Path, dir: &Path) -> Result<HypervisorFacts, HypervisorError> {
    let wrong = |reason: String| HypervisorError::Program { program: program.to_owned(), reason };
    let (socket, log) = (dir.join("probe.sock"), dir.join("probe.log"));
    let monitor = format!("unix:{},server=on,wait=off", socket.display().to_string().replace(',', ",,"));
    let args = ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", &monitor];
    let args = args.map(String::from);
    let launched = Process::launch(program, &args, None, &socket, &log, BUDGET).await;
    let facts = match launched {
        Ok((process, qmp)) => {
            let facts = ask(&qmp).await;
            let _ = qmp.call("quit", json!({}), BUDGET).await;
            if tokio::time::timeout(BUDGET, process.ended()).await.is_err() {
                process.kill();
                process.ended().await;
            }
            facts.map_err(|error| wrong(error.to_string()))
        }
        Err(LaunchError::Io { what, path, source }) => {
            Err(wrong(format!("cannot {what} {}: {source}", path.display())))
        }
        Err(LaunchError::Ended(log)) => Err(wrong(format!(
            "it ended at once and said: {log} (is QEMU installed? Debian: apt-get install qemu-system-x86)"
        ))),
        Err(LaunchError::Monitor(error)) => Err(wrong(error.to_string())),
    };
    for file in [&socket, &log] {
        // A leftover does no harm.
        let _ = remove_file(file);
    }
    facts
}

async fn ask(qmp: &Qmp) -> Result<HypervisorFacts, QmpError> {
    let (major, minor, micro) = qmp.version().unwrap_or_default();
    let devices = names(qmp.call("qom-list-types", json!({"implements": "device"}), BUDGET).await?);
    let has = |device: &str| devices.iter().any(|name| name == device);
    let memory = if has("virtio-mem-pci") {
        names(qmp.call("device-list-properties", json!({"typename": "virtio-mem-pci"}), BUDGET).await?)
    } else {
        Vec::new()
    };
    let machine = machine_type(qmp.call("query-machines", json!({}), BUDGET).await?);
    let machine = match machine {
        Some(name) => {
            names(qmp.call("qom-list-properties", json!({"typename": format!("{name}-machine")}), BUDGET).await?)
        }
        None => Vec::new(),
    };
    Ok(HypervisorFacts {
        version: format!("QEMU {major}.{minor}.{micro}"),
        release: (major, minor),
        dynamic_memslots: memory.iter().any(|name| name == "dynamic-memslots"),
        unplugged_inaccessible: memory.iter().any(|name| name == "unplugged-inaccessible"),
        smp_cache: machine.iter().any(|name| name == "smp-cache"),
        vsock: has("vhost-vsock-pci"),
        vfio: has("vfio-pci"),
        pxb_pcie: has("pxb-pcie"),
        topoext: false,
    })
}

fn names(list: Value) -> Vec<String> {
    let name = |item: &Value| item["name"].as_str().map(str::to_owned);
    list.as_array().map(|items| items.iter().filter_map(name).collect()).unwrap_or_default()
}

/// The full name of the newest q35 machine.
fn machine_type(machines: Value) -> Option<String> {
    let q35 = machines.as_array()?.iter().find(|machine| machine["alias"] == "q35")?;
    q35["name"].as_str().map(str::to_owned)
}
