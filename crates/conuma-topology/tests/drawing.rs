//! Drawings, as people see them.
#![allow(clippy::unwrap_used)]

use conuma_topology::{DrawOptions, Machine, Note, draw};

fn drawn(text: &str, width: usize) -> String {
    let machine: Machine = text.parse().unwrap();
    draw(&machine, &DrawOptions { width, color: false })
}

#[test]
fn four_nodes() {
    insta::assert_snapshot!(drawn("4n2c1t@1G; dev 0000:3b:00.0 node=2 class=020000 driver=virtio-pci gives=eth0", 80));
}

#[test]
fn packages_with_several_nodes_and_caches() {
    insta::assert_snapshot!(drawn("2p2n2l4c2t@64G; dist=10,11,21,21/11,10,21,21/21,21,10,11/21,21,11,10", 100));
}

#[test]
fn nodes_without_cpus_or_memory() {
    insta::assert_snapshot!(drawn(
        "node0 cpus=0-3 mem=4G free=1G huge=2M:512:100,1G:1; node1 mem=8G; node5 cpus=4-6; smt=2; off=7; \
         dev 0000:00:02.0 class=010802 gives=nvme0n1",
        80
    ));
}

#[test]
fn a_large_machine_is_condensed() {
    let text = drawn("2n4l16c2t@512G; node2 mem=1T", 100);
    insta::assert_snapshot!(text);
    assert!(drawn("16n8l8c2t@256G", 100).lines().count() < 120);
}

#[test]
fn virtual_functions_are_counted_and_notes_are_cleaned() {
    let functions: Vec<String> =
        (1..7).map(|n| format!("dev 0000:3b:00.{n} node=0 class=020000 pf=0000:3b:00.0")).collect();
    let text = format!("1n1c@1G; dev 0000:3b:00.0 node=0 class=020000 gives=eth0; {}", functions.join("; "));
    let mut machine: Machine = text.parse().unwrap();
    machine.notes.push(Note { place: "sys/odd".into(), text: "a \u{1b}[31mtrick\u{1b}[0m on the terminal".into() });
    insta::assert_snapshot!(draw(&machine, &DrawOptions { width: 60, color: false }));
}

#[test]
fn drawings_stay_within_their_width() {
    for text in ["4n2c1t@1G", "2p2n2l4c2t@64G", "1n64l1c@1G", "1n1l32c4t@1G", "16n8l8c2t@256G", "200n1c"] {
        for width in [60, 80, 100, 200] {
            let widest = drawn(text, width).lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width, "{text} is {widest} wide, not {width}");
        }
    }
}

#[test]
fn colour_only_adds_escapes() {
    let machine: Machine = "2n2c@1G".parse().unwrap();
    let plain = draw(&machine, &DrawOptions { width: 80, color: false });
    let colored = draw(&machine, &DrawOptions { width: 80, color: true });
    assert_eq!(colored.replace("\u{1b}[1m", "").replace("\u{1b}[0m", ""), plain);
}
