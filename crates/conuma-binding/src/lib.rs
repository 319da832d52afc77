#![forbid(unsafe_code)]
//! See the package description.
