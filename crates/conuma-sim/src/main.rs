//! The `conuma-sim` program.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use conuma_sim::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stdout = std::io::stdout();
    match cli::run(&cli, &mut stdout.lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let closed = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if closed == Some(std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            // Nothing is left to do if even this cannot be written.
            let _ = writeln!(std::io::stderr(), "conuma-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
