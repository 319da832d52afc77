//! The traces that come with the program, so that `compare` works anywhere.

use super::{Trace, TraceError};

/// Names and texts.
pub const SHIPPED: [(&str, &str); 3] = [
    ("web-and-batch", include_str!("../../traces/web-and-batch.csv")),
    ("diurnal-mix", include_str!("../../traces/diurnal-mix.csv")),
    ("hpc-and-burst", include_str!("../../traces/hpc-and-burst.csv")),
];

/// The shipped trace of that name.
pub fn find(name: &str) -> Option<Result<Trace, TraceError>> {
    SHIPPED.iter().find(|(known, _)| *known == name).map(|(name, text)| Trace::parse(text, name))
}
