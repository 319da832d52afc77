//! Boxes with a title, side by side as far as they fit.

use std::ops::Range;

/// Columns between two boxes.
const GAP: usize = 1;

/// A box before it is drawn.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
}

impl Block {
    /// Columns that the box takes with its frame.
    fn width(&self) -> usize {
        let inner = self.lines.iter().map(|line| visible(line)).max().unwrap_or(0);
        inner.max(visible(&self.title) + 1) + 4
    }

    /// Draws the box so many columns wide with room for so many lines.
    fn draw(&self, width: usize, height: usize, color: bool) -> Vec<String> {
        let inner = width.max(self.width()) - 4;
        let rule = "─".repeat(inner - visible(&self.title));
        let mut drawn = vec![format!("╭ {} {rule}╮", bold(&self.title, color))];
        for index in 0..height {
            let line = self.lines.get(index).map_or("", String::as_str);
            drawn.push(format!("│ {line}{} │", " ".repeat(inner - visible(line))));
        }
        drawn.push(format!("╰{}╯", "─".repeat(inner + 2)));
        drawn
    }
}

/// Draws boxes in rows of at most `width` columns. Boxes in a row are equally high; all are equally
/// wide if that takes no more rows.
pub(super) fn rows(blocks: &[Block], width: usize, color: bool) -> Vec<String> {
    let natural: Vec<usize> = blocks.iter().map(Block::width).collect();
    let widest = natural.iter().copied().max().unwrap_or(0);
    let even = vec![widest; blocks.len()];
    let widths = if split(&even, width).len() <= split(&natural, width).len() { even } else { natural };
    let mut drawn = Vec::new();
    for row in split(&widths, width) {
        let height = blocks[row.clone()].iter().map(|block| block.lines.len()).max().unwrap_or(0);
        let boxes = blocks[row.clone()].iter().zip(&widths[row]);
        let columns: Vec<Vec<String>> = boxes.map(|(block, width)| block.draw(*width, height, color)).collect();
        let line = |index: usize| {
            columns.iter().map(|column| column[index].as_str()).collect::<Vec<_>>().join(&" ".repeat(GAP))
        };
        drawn.extend((0..columns.first().map_or(0, Vec::len)).map(line));
    }
    drawn
}

/// Which boxes of these widths stand in one row.
fn split(widths: &[usize], width: usize) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let (mut first, mut used) = (0, 0);
    for (index, own) in widths.iter().enumerate() {
        if index > first && used + GAP + own > width {
            rows.push(first..index);
            (first, used) = (index, 0);
        }
        used += own + if index > first { GAP } else { 0 };
    }
    if first < widths.len() {
        rows.push(first..widths.len());
    }
    rows
}

/// Breaks words into lines of at most `width` columns; lines after the first begin with `indent` blanks.
pub(super) fn wrap(words: &[String], width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words {
        if !line.trim().is_empty() && visible(&line) + 1 + visible(word) > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !line.trim().is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.trim().is_empty() {
        lines.push(line);
    }
    lines
}

/// `wrap` for plain text.
pub(super) fn wrap_text(text: &str, width: usize, indent: usize) -> Vec<String> {
    wrap(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), width, indent)
}

/// Text in bold, if colour is wanted.
pub(super) fn bold(text: &str, color: bool) -> String {
    if color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// Text from outside without control characters, which could play tricks on a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Columns that a text takes: escape sequences take none, every other character one.
pub(super) fn visible(text: &str) -> usize {
    let mut in_escape = false;
    text.chars()
        .filter(|c| {
            let hidden = in_escape || *c == '\x1b';
            in_escape = hidden && *c != 'm';
            !hidden
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_stand_side_by_side_while_they_fit() {
        let block = |title: &str| Block { title: title.into(), lines: vec!["x".into()] };
        assert_eq!(rows(&[block("a"), block("b")], 20, false), ["╭ a ─╮ ╭ b ─╮", "│ x  │ │ x  │", "╰────╯ ╰────╯"]);
        assert_eq!(rows(&[block("a"), block("b")], 10, false).len(), 6);
        assert!(rows(&[], 10, false).is_empty());
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(wrap_text("one two three", 8, 2), ["one two", "  three"]);
        assert_eq!(wrap_text("unbreakable", 3, 2), ["unbreakable"]);
    }

    #[test]
    fn escapes_take_no_room() {
        assert_eq!(visible(&bold("node 0", true)), 6);
        assert_eq!(clean("eth\x1b[2J0\n"), "eth?[2J0?");
    }
}
