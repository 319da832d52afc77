//! Colour: what a piece of text means, turned into escape sequences or left alone.

/// Whether text is coloured. Passed to every renderer; nothing looks at the terminal itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    color: bool,
}

/// Colours that are told apart well on dark and light ground; VMs take them in turn.
const VM_COLORS: [&str; 6] = ["36", "33", "35", "32", "34", "31"];

impl Style {
    /// No escape sequences.
    pub const PLAIN: Self = Self { color: false };
    /// With colours.
    pub const COLOR: Self = Self { color: true };

    /// Whether there are escape sequences.
    pub fn is_color(self) -> bool {
        self.color
    }

    /// A thing of interest.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Heads and what matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// As it should be.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// A person should look.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something asked for did not happen.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// The colour of the `index`-th VM.
    pub fn vm(self, index: usize, text: &str) -> String {
        self.paint(VM_COLORS[index % VM_COLORS.len()], text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
