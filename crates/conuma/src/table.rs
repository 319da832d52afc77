//! Aligned columns.

use crate::style::Style;

/// Where the text of a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table without rules: a head and rows, columns two spaces apart.
#[derive(Debug, Clone)]
pub struct Table {
    head: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// A table with these columns. A name that starts with `>` is a column of numbers.
    pub fn new(head: &[&str]) -> Self {
        let column = |name: &&str| match name.strip_prefix('>') {
            Some(name) => (name.to_owned(), Align::Right),
            None => ((*name).to_owned(), Align::Left),
        };
        Self { head: head.iter().map(column).collect(), rows: Vec::new(), indent: 0 }
    }

    /// The same, `columns` spaces to the right.
    pub fn indented(mut self, columns: usize) -> Self {
        self.indent = columns;
        self
    }

    /// Adds a row; missing cells are empty.
    pub fn row<I, S>(&mut self, cells: I)
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, each line ended. Cells may hold colours; only what is seen counts for alignment.
    pub fn render(&self, style: Style) -> String {
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let rows = self.rows.iter().map(|row| width(&cell(row, column)));
                rows.chain([width(&self.head[column].0)]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: Vec<String>| {
            let padded = cells.into_iter().zip(&self.head).zip(&widths).map(|((text, (_, align)), width)| {
                let space = " ".repeat(width.saturating_sub(self::width(&text)));
                match align {
                    Align::Left => text + &space,
                    Align::Right => space + &text,
                }
            });
            let joined = padded.collect::<Vec<_>>().join("  ");
            format!("{}{}\n", " ".repeat(self.indent), joined.trim_end())
        };
        let head = line(self.head.iter().map(|(name, _)| style.dim(name)).collect());
        let rows = self.rows.iter().map(|row| line((0..self.head.len()).map(|column| cell(row, column)).collect()));
        std::iter::once(head).chain(rows).collect()
    }
}

/// Columns that `text` takes on a terminal, colours not counted.
pub fn width(text: &str) -> usize {
    let mut columns = 0;
    let mut in_escape = false;
    for c in text.chars() {
        match (in_escape, c) {
            (false, '\u{1b}') => in_escape = true,
            (false, _) => columns += 1,
            (true, 'm') => in_escape = false,
            (true, _) => {}
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let rows = |style: Style| {
            let mut table = Table::new(&["name", ">cores", "state"]);
            table.row([style.bold("a"), "2".into(), style.good("running")]);
            table.row(["longer".to_owned(), "16".to_owned()]);
            table.render(style)
        };
        assert_eq!(rows(Style::PLAIN), "name    cores  state\na           2  running\nlonger     16\n");
        let seen: Vec<usize> = rows(Style::COLOR).lines().map(width).collect();
        let plain: Vec<usize> = rows(Style::PLAIN).lines().map(width).collect();
        assert_eq!(seen, plain);
    }
}
