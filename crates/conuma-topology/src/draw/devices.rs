//! Devices as people know them.

use std::collections::BTreeMap;

use crate::draw::boxes::{clean, wrap};
use crate::ids::NodeId;
use crate::machine::{Machine, PciAddress, PciDevice};

/// With more than this many devices of interest at one place, the rest is counted.
const DEVICES_NAMED: usize = 12;

/// The devices at home on a node, or on none.
pub(super) fn lines(machine: &Machine, home: Option<NodeId>, width: usize) -> Vec<String> {
    let here: Vec<(&PciAddress, &PciDevice)> =
        machine.devices.iter().filter(|(_, device)| device.home == home).collect();
    let mut functions = BTreeMap::<PciAddress, usize>::new();
    for (_, device) in &here {
        if let Some(parent) = device.physical_function.filter(|parent| machine.devices.contains_key(parent)) {
            *functions.entry(parent).or_default() += 1;
        }
    }
    let is_counted = |device: &PciDevice| device.physical_function.is_some_and(|pf| functions.contains_key(&pf));
    let (named, rest): (Vec<_>, Vec<_>) =
        here.iter().copied().filter(|(_, device)| !is_counted(device)).partition(|(_, device)| is_of_interest(device));
    let mut lines = Vec::new();
    for (address, device) in named.iter().take(DEVICES_NAMED) {
        let mut words = vec![address.to_string(), kind(device.class).to_owned()];
        words.extend(device.driver.iter().map(|driver| clean(driver)));
        words.extend(device.provides.iter().map(|name| clean(name)));
        words.extend(functions.get(*address).map(|count| format!("({count} virtual functions)")));
        lines.extend(wrap(&words, width, 2));
    }
    let more = named.len().saturating_sub(DEVICES_NAMED);
    if more > 0 {
        lines.push(format!("and {more} more of these"));
    }
    if !rest.is_empty() {
        lines.push(format!("{} bridges and other devices", rest.len()));
    }
    lines
}

/// Whether people ask where this device is. Without a class nothing is known, so it is named.
fn is_of_interest(device: &PciDevice) -> bool {
    !device.provides.is_empty() || matches!(device.class >> 16, 0x01..=0x03 | 0x0b | 0x12) || device.class == 0
}

/// The class in a word.
fn kind(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, 0x08) => "nvme",
        (0x01, _) => "storage",
        (0x02, 0x07) => "infiniband",
        (0x02, _) => "network",
        (0x03, _) => "display",
        (0x0b, _) => "processor",
        (0x0c, 0x06) => "infiniband",
        (0x12, _) => "accelerator",
        _ => "device",
    }
}
