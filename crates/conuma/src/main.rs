//! The `conuma` program: looks at the terminal and the environment, runs one command, turns its
//! outcome into an exit code.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::process::ExitCode;

use conuma::cli::{self, ColorChoice};
use conuma::console::Console;
use conuma::run;
use conuma::style::Style;
use terminal_size::Width;

fn main() -> ExitCode {
    let cli = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let style = |is_terminal| style(cli.global.color, is_terminal, std::env::var_os("NO_COLOR").is_some());
    let live = stderr.is_terminal().then(|| columns(&stderr).unwrap_or(80));
    let wide = columns(&stdout).filter(|_| stdout.is_terminal());
    let is_screen = stdout.is_terminal();
    let (out_style, err_style) = (style(is_screen), style(stderr.is_terminal()));
    let (mut out, mut err) = (stdout.lock(), stderr.lock());
    let mut console = Console::plain(&mut out, &mut err);
    console.style = out_style;
    console.err_style = err_style;
    console.live = live;
    console.columns = wide.map_or(console.columns, usize::from);
    console.screen = is_screen;
    console.json = cli.global.json;
    match run::run(cli, &mut console) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) if conuma::failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if even this cannot be written.
            let _ = console.remark(conuma::failure::describe(&error, err_style).trim_end());
            ExitCode::from(conuma::failure::exit_code(&error))
        }
    }
}

fn columns(stream: impl AsFd) -> Option<u16> {
    terminal_size::terminal_size_of(stream).map(|(Width(columns), _)| columns)
}

fn style(choice: ColorChoice, is_terminal: bool, no_color: bool) -> Style {
    let color = match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => is_terminal && !no_color,
    };
    if color { Style::COLOR } else { Style::PLAIN }
}
