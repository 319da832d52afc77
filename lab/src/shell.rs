//! A simple shell in the virtual host: each line runs in a shell of its own.

use std::io::{BufRead, Write};

use anyhow::Result;

use crate::host::Lab;
use crate::wire::Say;

/// Reads lines from standard input and runs them in the host until `exit` or the end.
pub fn shell(lab: &Lab) -> Result<()> {
    let mut out = std::io::stdout();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        write!(out, "host# ")?;
        out.flush()?;
        let Some(line) = lines.next().transpose()?.filter(|line| line.trim() != "exit") else { return Ok(()) };
        if let Err(error) = lab.live(&["/bin/sh", "-c", &line], &mut print) {
            writeln!(out, "{error:#}")?;
        }
    }
}

/// Prints what a command says as it says it.
pub fn print(say: &Say) {
    // A closed standard output ends us at the next prompt.
    let _ = match say {
        Say::Out { text, .. } => std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()),
        Say::Err { text, .. } => std::io::stderr().write_all(text.as_bytes()),
        Say::Exit { .. } => Ok(()),
    };
}
