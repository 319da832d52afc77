//! Messages to people on standard error, with the priority prefixes that journald understands.

use std::fmt;
use std::io::{Write, stderr};

/// Who should read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something asked for did not happen.
    Error = 3,
    /// A person should look.
    Warn = 4,
    /// What happens in the ordinary course.
    Info = 6,
}

/// Writes one line.
pub fn log(level: Level, message: fmt::Arguments<'_>) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(stderr(), "<{}>conuma-agent: {message}", level as u8);
}

/// Writes a line for whoever asked for something that did not happen.
#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::log($crate::log::Level::Error, format_args!($($arg)*)) };
}

/// Writes a line that a person should look at.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::log($crate::log::Level::Warn, format_args!($($arg)*)) };
}

/// Writes a line about the ordinary course of things.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::log($crate::log::Level::Info, format_args!($($arg)*)) };
}
