//! Where output goes. Results go to `out`, progress and remarks to `err`.

use std::io::{self, Write};

use crate::style::Style;
use crate::table::width;

/// What `main` knows about the two streams.
pub struct Console<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Progress and remarks.
    pub err: &'a mut dyn Write,
    /// Columns of `out`.
    pub columns: usize,
    /// Colours on `out`.
    pub style: Style,
    /// Colours on `err`.
    pub err_style: Style,
    /// Columns of `err` if it is a terminal on which a line can be written over.
    pub live: Option<u16>,
    /// Whether `out` is a terminal that can be wiped.
    pub screen: bool,
    /// Whether results are JSON.
    pub json: bool,
    told: Vec<String>,
}

const CLEAR_LINE: &str = "\r\u{1b}[K";
const CLEAR_SCREEN: &str = "\u{1b}[H\u{1b}[2J";

impl<'a> Console<'a> {
    /// Plain text without colours on streams that are not terminals.
    pub fn plain(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self {
            out,
            err,
            columns: 100,
            style: Style::PLAIN,
            err_style: Style::PLAIN,
            live: None,
            screen: false,
            json: false,
            told: Vec::new(),
        }
    }

    /// Prints a result: `value` as JSON, or what `text` makes of it.
    pub fn result<T: serde::Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        self.settle()?;
        let text = if self.json { serde_json::to_string_pretty(value)? + "\n" } else { text(value, self.style) };
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Prints a result of many: `value` as JSON on one line, or `text` made of it.
    pub fn result_line<T: serde::Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { text(value, self.style) };
        Ok(self.print(&format!("{}\n", text.trim_end()))?)
    }

    /// Prints text as it is.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        self.settle()?;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Begins a picture that takes the place of the one before: wipes the screen, if results go
    /// to one, else sets an empty line between.
    pub fn next_picture(&mut self, first: bool) -> io::Result<()> {
        match (self.json, self.screen, first) {
            (true, _, _) | (false, false, true) => Ok(()),
            (false, true, _) => self.print(CLEAR_SCREEN),
            (false, false, false) => self.print("\n"),
        }
    }

    /// Tells how things stand, a line for each of several things: on a terminal all in the place
    /// of what was told before, else each that changed on a line of its own.
    pub fn progress(&mut self, lines: &[String]) -> io::Result<()> {
        if lines == self.told {
            return Ok(());
        }
        match self.live {
            Some(columns) => {
                let line = lines.join("   ");
                write!(self.err, "{CLEAR_LINE}{}", cut(&line, columns.saturating_sub(1).into()))?;
            }
            None => {
                let changed = lines.iter().enumerate().filter(|(i, line)| self.told.get(*i) != Some(*line));
                for (_, line) in changed {
                    writeln!(self.err, "{line}")?;
                }
            }
        }
        self.told = lines.to_vec();
        self.err.flush()
    }

    /// A remark that stays on the screen.
    pub fn remark(&mut self, line: &str) -> io::Result<()> {
        self.settle()?;
        writeln!(self.err, "{line}")?;
        self.err.flush()
    }

    /// Ends the progress line, if there is one.
    pub fn settle(&mut self) -> io::Result<()> {
        if self.live.is_some() && !self.told.is_empty() {
            self.err.write_all(CLEAR_LINE.as_bytes())?;
            self.err.flush()?;
        }
        self.told.clear();
        Ok(())
    }
}

/// The first `columns` columns of `text`; colours are dropped from a text that must be cut.
fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut seen = String::new();
    let mut in_escape = false;
    for c in text.chars() {
        match (in_escape, c) {
            (false, '\u{1b}') => in_escape = true,
            (true, 'm') => in_escape = false,
            (true, _) => {}
            (false, c) => seen.push(c),
        }
    }
    seen.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(live: Option<u16>, act: impl Fn(&mut Console<'_>) -> io::Result<()>) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console { live, ..Console::plain(&mut out, &mut err) };
        act(&mut console).expect("writing into a vector");
        (String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }

    fn two_steps(console: &mut Console<'_>) -> io::Result<()> {
        for step in [["a: take", "b: wait"], ["a: take", "b: wait"], ["a: give", "b: wait"]] {
            console.progress(&step.map(String::from))?;
        }
        console.print("done\n")
    }

    #[test]
    fn progress_is_plain_lines_without_a_terminal() {
        assert_eq!(written(None, two_steps), ("done\n".into(), "a: take\nb: wait\na: give\n".into()));
    }

    #[test]
    fn progress_is_one_line_written_over_on_a_terminal() {
        let (out, err) = written(Some(10), two_steps);
        assert_eq!(out, "done\n");
        assert_eq!(err, "\r\u{1b}[Ka: take …\r\u{1b}[Ka: give …\r\u{1b}[K");
    }
}
