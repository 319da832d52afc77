//! Raw system calls: affinity and memory placement.
