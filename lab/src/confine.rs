//! Runs a program with no more capabilities than its systemd unit grants, so that every trial shows that they are enough.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::thread::{Capability, remove_capability_from_bounding_set, set_no_new_privs};

const DAEMON: &str = include_str!("../../crates/conumad/packaging/conumad.service");
const AGENT: &str = include_str!("../../crates/conuma-agent/packaging/conuma-agent.service");

/// All capabilities of Linux 6.1, by their names in units.
const ALL: [(&str, Capability); 41] = [
    ("CAP_CHOWN", Capability::ChangeOwnership),
    ("CAP_DAC_OVERRIDE", Capability::DACOverride),
    ("CAP_DAC_READ_SEARCH", Capability::DACReadSearch),
    ("CAP_FOWNER", Capability::FileOwner),
    ("CAP_FSETID", Capability::FileSetID),
    ("CAP_KILL", Capability::Kill),
    ("CAP_SETGID", Capability::SetGroupID),
    ("CAP_SETUID", Capability::SetUserID),
    ("CAP_SETPCAP", Capability::SetPermittedCapabilities),
    ("CAP_LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("CAP_NET_BIND_SERVICE", Capability::NetBindService),
    ("CAP_NET_BROADCAST", Capability::NetBroadcast),
    ("CAP_NET_ADMIN", Capability::NetAdmin),
    ("CAP_NET_RAW", Capability::NetRaw),
    ("CAP_IPC_LOCK", Capability::IPCLock),
    ("CAP_IPC_OWNER", Capability::IPCOwner),
    ("CAP_SYS_MODULE", Capability::SystemModule),
    ("CAP_SYS_RAWIO", Capability::SystemRawIO),
    ("CAP_SYS_CHROOT", Capability::SystemChangeRoot),
    ("CAP_SYS_PTRACE", Capability::SystemProcessTrace),
    ("CAP_SYS_PACCT", Capability::SystemProcessAccounting),
    ("CAP_SYS_ADMIN", Capability::SystemAdmin),
    ("CAP_SYS_BOOT", Capability::SystemBoot),
    ("CAP_SYS_NICE", Capability::SystemNice),
    ("CAP_SYS_RESOURCE", Capability::SystemResource),
    ("CAP_SYS_TIME", Capability::SystemTime),
    ("CAP_SYS_TTY_CONFIG", Capability::SystemTTYConfig),
    ("CAP_MKNOD", Capability::MakeNode),
    ("CAP_LEASE", Capability::Lease),
    ("CAP_AUDIT_WRITE", Capability::AuditWrite),
    ("CAP_AUDIT_CONTROL", Capability::AuditControl),
    ("CAP_SETFCAP", Capability::SetFileCapabilities),
    ("CAP_MAC_OVERRIDE", Capability::MACOverride),
    ("CAP_MAC_ADMIN", Capability::MACAdmin),
    ("CAP_SYSLOG", Capability::SystemLog),
    ("CAP_WAKE_ALARM", Capability::WakeAlarm),
    ("CAP_BLOCK_SUSPEND", Capability::BlockSuspend),
    ("CAP_AUDIT_READ", Capability::AuditRead),
    ("CAP_PERFMON", Capability::PerformanceMonitoring),
    ("CAP_BPF", Capability::BerkeleyPacketFilters),
    ("CAP_CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// Becomes the program, which is `conumad` or `conuma-agent`.
pub fn confine(argv: &[String]) -> Result<()> {
    let (program, arguments) = argv.split_first().context("no program to run")?;
    let unit = match program.as_str() {
        "conumad" => DAEMON,
        "conuma-agent" => AGENT,
        other => bail!("{other} has no unit"),
    };
    let granted = granted(unit)?;
    for (name, capability) in ALL {
        if !granted.contains(&name) {
            remove_capability_from_bounding_set(capability).with_context(|| format!("giving up {name}"))?;
        }
    }
    set_no_new_privs(true)?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
}

/// What a unit's line grants; every name must be one that is known.
fn granted(unit: &'static str) -> Result<Vec<&'static str>> {
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names: Vec<&str> = line.context("the unit does not bound capabilities")?.split_whitespace().collect();
    for name in &names {
        ALL.iter().find(|(known, _)| known == name).with_context(|| format!("{name} is no capability"))?;
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_grant_few_capabilities_and_none_that_is_as_good_as_all() {
        for unit in [DAEMON, AGENT] {
            let granted = granted(unit).expect("a line");
            assert!(!granted.is_empty() && granted.len() <= 6, "{granted:?}");
            for name in ["CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SETUID", "CAP_SYS_BOOT"] {
                assert!(!granted.contains(&name), "{name}");
            }
        }
    }
}
