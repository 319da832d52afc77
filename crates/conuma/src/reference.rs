//! The command line's reference, made from its definition: Markdown, man pages, completions.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;

use crate::cli;

const WIDTH: usize = 100;

/// `docs/cli.md`: the help of every command.
pub fn markdown() -> String {
    let mut root = sized(cli::command());
    let mut text = String::from(
        "# `conuma`: reference\n\n\
         Made from the program's own help by `CONUMA_REGENERATE=1 cargo test -p conuma --test generated`; do not edit.\n",
    );
    text.push_str(&section("##", "conuma", &mut root));
    for (group, names) in cli::GROUPS {
        text.push_str(&format!("\n## {group}\n"));
        for name in names {
            if let Some(command) = root.find_subcommand(name) {
                sections(&mut text, "###", &format!("conuma {name}"), command);
            }
        }
    }
    text
}

/// The help of a command, and of those below it.
fn sections(text: &mut String, mark: &str, title: &str, command: &Command) {
    // Told once, with the program's own help.
    let mut own = command.clone().mut_args(|arg| {
        let everywhere = arg.is_global_set();
        arg.hide(everywhere)
    });
    text.push_str(&section(mark, title, &mut own));
    for below in command.get_subcommands() {
        sections(text, &format!("{mark}#"), &format!("{title} {}", below.get_name()), below);
    }
}

/// Writes `conuma.1`, `conuma-lend.1` and so on into `dir`, which must exist; gives their names.
pub fn man_pages(dir: &Path) -> io::Result<Vec<String>> {
    let root = sized(cli::command());
    let mut written = Vec::new();
    write_pages(root, "conuma", dir, &mut written)?;
    Ok(written)
}

/// The page of a command, and of those below it.
fn write_pages(command: Command, name: &str, dir: &Path, written: &mut Vec<String>) -> io::Result<()> {
    let below: Vec<Command> = command.get_subcommands().cloned().collect();
    let file = format!("{name}.1");
    let mut text = Vec::new();
    let source = concat!("conuma ", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command).title(name.to_uppercase()).source(source).manual("Conuma").render(&mut text)?;
    std::fs::write(dir.join(&file), text)?;
    written.push(file);
    for command in below {
        let name = format!("{name}-{}", command.get_name());
        write_pages(command, &name, dir, written)?;
    }
    Ok(())
}

/// The completion script of `shell`.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "conuma", &mut text);
    out.write_all(&text)
}

fn sized(command: Command) -> Command {
    let mut command = command.term_width(WIDTH);
    command.build();
    command
}

fn section(mark: &str, title: &str, command: &mut Command) -> String {
    let help = command.render_long_help().to_string();
    let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    format!("\n{mark} `{title}`\n\n```text\n{}\n```\n", help.trim_end())
}
