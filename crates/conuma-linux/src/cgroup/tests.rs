use super::*;
use conuma_topology::{Bytes, CpuId, CpuSet};
use std::time::Duration;

fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let cgroup = Cgroup::at(dir.path());
    (dir, cgroup)
}

#[test]
fn knobs_read_what_they_wrote() {
    let (_dir, cgroup) =
        cgroup(&[("cpu.idle", "0\n"), ("cpu.max", "max 100000\n"), ("cpuset.cpus", "\n"), ("memory.max", "max\n")]);
    assert_eq!(cgroup.cpu_max().unwrap(), CpuMax::NONE);
    assert_eq!(cgroup.cpus().unwrap(), CpuSet::new());
    assert_eq!(cgroup.memory_max().unwrap(), Limit::Max);
    cgroup.set_idle(Idle::Yes).unwrap();
    assert_eq!(cgroup.idle().unwrap(), Idle::Yes);
    let max = CpuMax { quota: Limit::At(Duration::from_millis(5)), period: CpuMax::PERIOD };
    fs::write(cgroup.path().join("cpu.max"), "").unwrap();
    cgroup.set_cpu_max(max).unwrap();
    assert_eq!(cgroup.cpu_max().unwrap(), max);
    fs::write(cgroup.path().join("memory.max"), "").unwrap();
    cgroup.set_memory_max(Limit::At(Bytes::mib(3))).unwrap();
    assert_eq!(cgroup.memory_max().unwrap(), Limit::At(Bytes::mib(3)));
    cgroup.set_cpus(&CpuSet::from([CpuId(3), CpuId(4)])).unwrap();
    assert_eq!(fs::read_to_string(cgroup.path().join("cpuset.cpus")).unwrap(), "3-4\n");
}

#[test]
fn only_missing_controllers_are_enabled() {
    let (_dir, cgroup) = cgroup(&[("cgroup.subtree_control", "cpu cpuset\n")]);
    cgroup.enable(&["cpu", "cpuset"]).unwrap();
    assert_eq!(fs::read_to_string(cgroup.path().join("cgroup.subtree_control")).unwrap(), "cpu cpuset\n");
}

#[test]
fn a_missing_file_is_named_and_not_created() {
    let (_dir, cgroup) = cgroup(&[]);
    let error = cgroup.set_idle(Idle::Yes).unwrap_err();
    assert!(error.is_gone());
    assert!(error.to_string().contains("cpu.idle"), "{error}");
    assert!(!cgroup.path().join("cpu.idle").exists());
}

#[test]
fn odd_texts_are_errors_that_show_them() {
    let (_dir, cgroup) =
        cgroup(&[("cgroup.type", "strange\n"), ("cpu.stat", "user_usec 3\n"), ("cgroup.threads", "12\nx\n")]);
    assert!(cgroup.kind().unwrap_err().to_string().contains("strange"));
    assert!(matches!(cgroup.cpu_usage(), Err(CgroupError::Malformed { .. })));
    assert!(matches!(cgroup.threads(), Err(CgroupError::Malformed { .. })));
}
