//! What was odd.

use conuma_topology::Note;

/// Collects notes while a machine is read.
#[derive(Debug, Default)]
pub(super) struct Notes(Vec<Note>);

impl Notes {
    /// Notes what was found at `place`, what was believed, and why.
    pub(super) fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push(Note { place: place.into(), text: text.into() });
    }

    /// All notes.
    pub(super) fn into_inner(self) -> Vec<Note> {
        self.0
    }
}
