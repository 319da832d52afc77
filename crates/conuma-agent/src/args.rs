//! The command line.

use std::path::PathBuf;

use conuma_agent_proto::PORT;

use crate::listen::Address;

/// Shown for `--help`.
pub const HELP: &str = "\
The guest agent of Conuma: applies the host's decisions in this guest.

Usage: conuma-agent [OPTIONS]

Options:
  --listen ADDRESS    where the host connects: vsock:PORT or unix:PATH [default: vsock:5877]
  --root DIR          where proc, sys and boot are found [default: /]
  --run DIR           where to remember things until the guest stops [default: /run/conuma-agent]
  --keep-auto-online  leave alone what the kernel does with memory that appears; otherwise it is
                      made movable, as memory in other zones cannot be taken again
  --version           show the version
  --help              show this

Needs root, cgroup v2 in /sys/fs/cgroup and, for memory, the virtio_mem module.
";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve the host.
    Serve(Options),
    /// Show the version.
    Version,
    /// Show the help.
    Help,
}

/// How to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the host connects.
    pub listen: Address,
    /// Where proc, sys and boot are found.
    pub root: PathBuf,
    /// Where to remember things.
    pub run: PathBuf,
    /// Whether to leave memory that appears to the kernel's own policy.
    pub keep_auto_online: bool,
}

/// Reads the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut options = Options {
        listen: Address::Vsock(PORT),
        root: "/".into(),
        run: "/run/conuma-agent".into(),
        keep_auto_online: false,
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, joined) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let mut value = || joined.clone().or_else(|| args.next()).ok_or(format!("{name} needs a value (see --help)"));
        match name {
            "--listen" => options.listen = value()?.parse()?,
            "--root" => options.root = value()?.into(),
            "--run" => options.run = value()?.into(),
            "--keep-auto-online" => options.keep_auto_online = true,
            "--version" | "-V" => return Ok(Command::Version),
            "--help" | "-h" => return Ok(Command::Help),
            _ => return Err(format!("unknown argument `{arg}` (see --help)")),
        }
    }
    Ok(Command::Serve(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn defaults_and_values() {
        let Ok(Command::Serve(options)) = check(&[]) else { panic!("defaults serve") };
        assert_eq!(options.listen, Address::Vsock(PORT));
        assert!(HELP.contains(&options.listen.to_string()), "the help names the default");
        let Ok(Command::Serve(options)) = check(&["--listen=unix:/a", "--root", "/b", "--keep-auto-online"]) else {
            panic!("both forms of a value work")
        };
        assert_eq!(options.listen, Address::Unix("/a".into()));
        assert_eq!(options.root, PathBuf::from("/b"));
        assert!(options.keep_auto_online);
    }

    #[test]
    fn mistakes_are_told() {
        assert!(check(&["--listen"]).unwrap_err().contains("needs a value"));
        assert!(check(&["--listen", "tcp:1"]).unwrap_err().contains("expected `vsock:PORT`"));
        assert!(check(&["--listen", "vsock:x"]).unwrap_err().contains("port number"));
        assert!(check(&["serve"]).unwrap_err().contains("unknown argument `serve`"));
    }
}
