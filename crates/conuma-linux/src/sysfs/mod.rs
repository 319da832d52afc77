//! Readers of sysfs.
