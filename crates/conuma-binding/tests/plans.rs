//! Golden plans of many machines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use conuma_binding::{Accel, BindingPlan, PlanOptions, Reserve, VmSpec, render_table};
use conuma_topology::{Bytes, Machine};

fn check(name: &str, machine: &str, vm: &str) {
    let machine: Machine = machine.parse().unwrap();
    let spec = VmSpec::parse(&format!("name = \"a\"\n{vm}"), "a.toml").unwrap();
    let reserve = Reserve { memory_per_node: Bytes::mib(256), ..Reserve::default() };
    let options = PlanOptions { accel: Accel::Kvm, cid: Some(3), dir: Path::new("/vms/a").to_owned() };
    let plan = BindingPlan::new(&spec, &machine, &reserve, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<BindingPlan>(&json).unwrap(), plan, "{name}: JSON keeps the plan");
    insta::assert_snapshot!(name, render_table(&plan));
}

const SMALL: &str = "[guarantee]\ncores = 1\nmemory = \"512M\"\n[boot]\nmemory_per_node = \"128M\"";
const LARGE: &str = "[guarantee]\ncores = 1\nmemory = \"16G\"\n[boot]\nmemory_per_node = \"512M\"";

#[test]
fn four_nodes() {
    check("four_nodes", "4n2c1t@1G", SMALL);
}

#[test]
fn smt() {
    check("smt", "2n2c2t@1G", SMALL);
}

#[test]
fn siblings_numbered_far_apart() {
    check(
        "siblings_numbered_far_apart",
        "node0 cpus=0-3,8-11 mem=4G; node1 cpus=4-7,12-15 mem=4G; \
         cores=0,8/1,9/2,10/3,11/4,12/5,13/6,14/7,15; packages=0-3,8-11/4-7,12-15; llcs=0-3,8-11/4-7,12-15",
        SMALL,
    );
}

#[test]
fn a_node_without_cpus() {
    check("a_node_without_cpus", "2n2c@1G; node2 mem=2G; dist=10,20,30/20,10,30/30,30,10", SMALL);
}

#[test]
fn cpus_begin_on_a_later_node() {
    check("cpus_begin_on_a_later_node", "node0 mem=2G; node1 cpus=0-1 mem=1G; node2 cpus=2-3 mem=1G", SMALL);
}

#[test]
fn a_node_without_memory() {
    check("a_node_without_memory", "node0 cpus=0-1 mem=2G; node1 cpus=2-3", SMALL);
}

#[test]
fn the_first_node_without_memory() {
    check("the_first_node_without_memory", "node0 cpus=0-1; node1 cpus=2-3 mem=2G", SMALL);
}

#[test]
fn a_node_with_neither() {
    check("a_node_with_neither", "node0 cpus=0-1 mem=2G; node1; node2 mem=1G", SMALL);
}

#[test]
fn odd_core_counts() {
    check("odd_core_counts", "node0 cpus=0-2 mem=1G; node1 cpus=3-7 mem=1G; packages=0-2/3-7", SMALL);
}

#[test]
fn large_and_small_cores() {
    check("large_and_small_cores", "node0 cpus=0-7 mem=8G; cores=0,1/2,3/4/5/6/7; packages=0-7; llcs=0-7", SMALL);
}

#[test]
fn sparse_ids() {
    check(
        "sparse_ids",
        "node1 cpus=4-5 mem=1G; node8 cpus=16,20 mem=1G; packages=4-5/16,20; dist=10,40/40,10; off=0-1",
        SMALL,
    );
}

#[test]
fn asymmetric_distances() {
    check("asymmetric_distances", "2n2c@1G; dist=10,16/31,10", SMALL);
}

#[test]
fn caches_smaller_than_a_die() {
    check("caches_smaller_than_a_die", "1p2n2l2c2t@2G", SMALL);
}

#[test]
fn sixteen_nodes_of_128_cpus() {
    check("sixteen_nodes_of_128_cpus", "16n64c2t@64G", LARGE);
}

#[test]
fn a_limit_narrows_the_envelope() {
    let vm = format!("{SMALL}\n[limit]\ncpus = \"0-3\"\nmemory = {{ node0 = \"512M\", node1 = \"1G\" }}");
    check("a_limit_narrows_the_envelope", "4n2c@2G", &vm);
}

#[test]
fn devices_at_home() {
    let machine = "4n2c@2G; dev 0000:3b:00.0 node=2 class=020000 vendor=15b3 device=1017; \
                   dev 0000:3b:00.1 node=2 class=020000 vendor=15b3 device=1017; \
                   dev 0000:00:1f.0 class=060100 vendor=8086 device=1; \
                   dev 0000:86:00.0 node=3 class=010802 vendor=144d device=a80a";
    let vm = format!("devices = [\"0000:3b:00.0\", \"3b:00.1\", \"0000:86:00.0\", \"00:1f.0\"]\n{SMALL}");
    check("devices_at_home", machine, &vm);
}

#[test]
fn a_small_node_gives_what_it_has() {
    check("a_small_node_gives_what_it_has", "2n2c@2G; node2 mem=300M; node3 mem=200M", SMALL);
}
