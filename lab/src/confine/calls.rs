//! What a unit says of system calls, as seccomp filters like those that systemd makes of it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;
use seccompiler::{BpfProgram, compile_from_json};
use serde_json::{Value, json};

use super::words;

const GROUPS: &str = include_str!("groups.txt");

/// Address families that a unit may name, by their numbers in `linux/socket.h`.
const FAMILIES: [(&str, u32); 5] =
    [("AF_UNIX", 1), ("AF_INET", 2), ("AF_INET6", 10), ("AF_NETLINK", 16), ("AF_VSOCK", 40)];

/// The kinds of namespaces that systemd 252 knows.
const NAMESPACES: [UnshareFlags; 7] = [
    UnshareFlags::NEWCGROUP,
    UnshareFlags::NEWIPC,
    UnshareFlags::NEWNET,
    UnshareFlags::NEWNS,
    UnshareFlags::NEWPID,
    UnshareFlags::NEWUSER,
    UnshareFlags::NEWUTS,
];

/// A unit's filters in the order in which they are to be applied: the last one may forbid to apply more.
pub(super) fn filters(unit: &str) -> Result<Vec<BpfProgram>> {
    let mut filters = families(unit)?;
    filters.extend(namespaces(unit)?);
    filters.push(calls(unit)?);
    Ok(filters)
}

/// `SystemCallFilter=`. What is not allowed ends the process, also where the unit lets it fail only: a trial is to see it.
fn calls(unit: &str) -> Result<BpfProgram> {
    let rules = allowed(unit)?.into_iter().map(|call| json!({ "syscall": call })).collect();
    filter(json!("kill_process"), json!("allow"), rules).context("SystemCallFilter=")
}

/// The names of all system calls that a unit allows.
fn allowed(unit: &str) -> Result<BTreeSet<&str>> {
    let mut calls = BTreeSet::new();
    let mut left: Vec<&str> = words(unit, "SystemCallFilter=").collect();
    ensure!(!left.is_empty(), "the unit does not filter system calls");
    while let Some(name) = left.pop() {
        ensure!(!name.starts_with('~'), "{name}: only what is allowed is understood here");
        if name.starts_with('@') {
            left.extend(members(name).with_context(|| format!("{name} is no group"))?);
        } else {
            calls.insert(name);
        }
    }
    Ok(calls)
}

/// What a group consists of: the indented lines that follow its name.
fn members(group: &str) -> Option<Vec<&'static str>> {
    let mut lines = GROUPS.lines();
    lines.find(|line| *line == group)?;
    Some(lines.take_while(|line| line.starts_with(' ')).flat_map(str::split_whitespace).collect())
}

/// `RestrictAddressFamilies=`: sockets of other families do not exist.
fn families(unit: &str) -> Result<Vec<BpfProgram>> {
    let number = |name| {
        let known = FAMILIES.iter().find(|(known, _)| *known == name);
        known.map(|(_, number)| *number).with_context(|| format!("the address family {name} is not understood here"))
    };
    let unlike = |family| json!({ "index": 0, "type": "dword", "op": "ne", "val": family });
    let others: Vec<Value> =
        words(unit, "RestrictAddressFamilies=").map(|name| number(name).map(unlike)).collect::<Result<_>>()?;
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let rules = vec![json!({ "syscall": "socket", "args": others })];
    Ok(vec![filter(json!("allow"), error(Errno::AFNOSUPPORT), rules).context("RestrictAddressFamilies=")?])
}

/// `RestrictNamespaces=yes`: no namespace is made or entered. A filter cannot look at the flags of `clone3`, so that
/// does not exist: libraries then use `clone`.
fn namespaces(unit: &str) -> Result<Vec<BpfProgram>> {
    match words(unit, "RestrictNamespaces=").next() {
        None => return Ok(Vec::new()),
        Some(word) => ensure!(word == "yes", "RestrictNamespaces={word} is not understood here"),
    }
    let makes = |call, kind: UnshareFlags| {
        let kind = kind.bits();
        let has = json!({ "index": 0, "type": "dword", "op": { "masked_eq": kind }, "val": kind });
        json!({ "syscall": call, "args": [has] })
    };
    let mut refused = vec![json!({ "syscall": "setns" })];
    for call in ["unshare", "clone"] {
        refused.extend(NAMESPACES.map(|kind| makes(call, kind)));
    }
    let missing = vec![json!({ "syscall": "clone3" })];
    let both = [(Errno::PERM, refused), (Errno::NOSYS, missing)];
    both.into_iter()
        .map(|(errno, rules)| filter(json!("allow"), error(errno), rules).context("RestrictNamespaces="))
        .collect()
}

fn error(errno: Errno) -> Value {
    json!({ "errno": errno.raw_os_error() })
}

/// Compiles rules, whose names must be those of system calls.
fn filter(otherwise: Value, matched: Value, rules: Vec<Value>) -> Result<BpfProgram> {
    let text = json!({ "all": { "mismatch_action": otherwise, "match_action": matched, "filter": rules } }).to_string();
    let mut compiled = compile_from_json(text.as_bytes(), std::env::consts::ARCH.try_into()?)?;
    compiled.remove("all").context("compiled to nothing")
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus, Stdio};

    use super::super::{AGENT, DAEMON};
    use super::*;

    /// Runs something in a thread of its own under the filters of a unit.
    fn under<T: Send + 'static>(unit: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
        let filters = filters(unit).expect("a unit that is understood");
        let thread = std::thread::spawn(move || {
            for filter in &filters {
                seccompiler::apply_filter(filter).expect("applied");
            }
            body()
        });
        thread.join().expect("it does not panic")
    }

    fn run(argv: &'static [&'static str]) -> ExitStatus {
        Command::new(argv[0]).args(&argv[1..]).stderr(Stdio::null()).status().expect("it runs")
    }

    #[test]
    fn units_allow_what_their_programs_do_and_nothing_that_changes_the_host() {
        for unit in [DAEMON, AGENT] {
            let allowed = allowed(unit).expect("a filter");
            for call in ["execve", "ioctl", "mbind", "migrate_pages", "move_pages", "pidfd_open", "sched_setaffinity"] {
                assert!(allowed.contains(call), "{call}");
            }
            for call in
                ["bpf", "chroot", "init_module", "kexec_load", "mount", "pivot_root", "ptrace", "reboot", "swapon"]
            {
                assert!(!allowed.contains(call), "{call}");
            }
        }
        let qemu =
            ["io_uring_enter", "io_uring_register", "io_uring_setup", "madvise", "mlockall", "seccomp", "userfaultfd"];
        let allowed = allowed(DAEMON).expect("a filter");
        assert!(qemu.iter().all(|call| allowed.contains(call)));
    }

    #[test]
    fn a_name_that_is_not_known_is_an_error() {
        for unit in [
            "SystemCallFilter=read raed",
            "SystemCallFilter=@no-group",
            "SystemCallFilter=~mount",
            "SystemCallFilter=read\nRestrictAddressFamilies=AF_UNIX AF_XINU",
            "SystemCallFilter=read\nRestrictNamespaces=net",
            "Nice=-10",
        ] {
            assert!(filters(unit).is_err(), "{unit}");
        }
    }

    #[test]
    fn a_call_that_is_not_allowed_ends_the_process() {
        for unit in [DAEMON, AGENT] {
            assert!(under(unit, || run(&["/bin/sh", "-c", "exec true"])).success());
            assert_eq!(under(unit, || run(&["chroot", "/nowhere"])).signal(), Some(31), "SIGSYS");
        }
    }

    #[test]
    fn only_the_units_address_families_exist() {
        let internet = || UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(under(AGENT, internet), Err(Some(Errno::AFNOSUPPORT.raw_os_error())));
        assert_eq!(under(DAEMON, internet), Ok(()));
        for unit in [DAEMON, AGENT] {
            assert!(under(unit, UnixDatagram::unbound).is_ok());
        }
    }

    #[test]
    fn no_namespace_is_made() {
        for unit in [DAEMON, AGENT] {
            // Making one of these needs no privilege, where the kernel lets anyone.
            let make = || run(&["unshare", "--user", "true"]);
            if make().success() {
                let status = under(unit, make);
                assert_eq!((status.code(), status.signal()), (Some(1), None));
            }
            let thread = under(unit, || std::thread::spawn(|| 1).join());
            assert_eq!(thread.expect("a thread"), 1);
        }
    }
}
