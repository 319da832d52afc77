//! cgroup v2 directories.
