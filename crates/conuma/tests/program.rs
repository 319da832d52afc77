//! The built program, as a user types it: what needs no daemon, and what it says when something is wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use conuma_policy::{Rules, Tuning};

/// A VM file that fits every machine here.
const VM: &str = "\
name = \"a\"
[guarantee]
cores = 2
memory = \"512M\"
[boot]
memory_per_node = \"128M\"
kernel = \"/boot/vmlinuz\"
";

/// What came out, and the exit code.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `conuma` in `dir` with these words; no daemon is there.
fn conuma(dir: &Path, line: &str) -> Ran {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_conuma"))
        .current_dir(dir)
        .env("CONUMA_SOCKET", "none.sock")
        .env_remove("NO_COLOR")
        .args(line.split_whitespace())
        .output()
        .expect("running the program");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code().expect("an exit code"), out: text(stdout), err: text(stderr) }
}

fn with_vm_file(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("a.toml"), text).expect("writing");
    dir
}

fn check_fails(dir: &Path, line: &str, code: i32, expected: &[&str]) {
    let ran = conuma(dir, line);
    assert_eq!(ran.code, code, "{line}: {}", ran.err);
    assert_eq!(ran.out, "", "{line}");
    for text in expected {
        assert!(ran.err.contains(text), "{line}: no `{text}` in\n{}", ran.err);
    }
}

#[test]
fn a_topology_text_is_drawn_and_comes_back_from_json() {
    let dir = tempfile::tempdir().expect("a directory");
    let drawn = conuma(dir.path(), "topology --topology 2n2c2t@1G");
    assert_eq!(drawn.code, 0, "{}", drawn.err);
    assert!(drawn.out.contains("node 1"), "{}", drawn.out);
    assert!(!drawn.out.contains('\u{1b}'), "no colour without a terminal");
    let json = conuma(dir.path(), "topology --topology 2n2c2t@1G --json");
    fs::write(dir.path().join("machine.json"), &json.out).expect("writing");
    assert_eq!(conuma(dir.path(), "topology --topology machine.json").out, drawn.out);
}

#[test]
fn this_machine_is_drawn() {
    let dir = tempfile::tempdir().expect("a directory");
    let ran = conuma(dir.path(), "topology --color always");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("\u{1b}["), "colour was asked for");
}

#[test]
fn a_plan_binds_every_node() {
    let dir = with_vm_file(VM);
    let ran = conuma(dir.path(), "plan a.toml --topology 4n2c1t@1G --reserve-memory 128M");
    assert_eq!(ran.code, 0, "{}", ran.err);
    insta::assert_snapshot!("plan", ran.out);
    let json = conuma(dir.path(), "plan a.toml --topology 4n2c1t@1G --json");
    let plan: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(plan["memory"].as_array().map(Vec::len), Some(4), "{plan}");
}

#[test]
fn the_command_line_has_an_option_a_line() {
    let dir = with_vm_file(VM);
    let ran = conuma(dir.path(), "plan a.toml --topology 2n2c1t@1G --qemu --state /var/lib/conuma");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("qemu-system-x86_64 \\\n  -name guest=a,"), "{}", ran.out);
    assert!(ran.out.contains("/var/lib/conuma/vms/a/qmp.sock"), "{}", ran.out);
    let json = conuma(dir.path(), "plan a.toml --topology 2n2c1t@1G --qemu --json");
    let words: Vec<String> = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(words.first().map(String::as_str), Some("qemu-system-x86_64"));
    let plain = |text: &str| text.replace(['\\', '\n', '\'', ' '], "");
    assert_eq!(plain(&words.concat()), plain(&ran.out), "text and JSON say the same");
}

#[test]
fn what_is_wrong_with_a_topology_is_told() {
    let dir = with_vm_file(VM);
    check_fails(dir.path(), "topology --topology 2x", 1, &["`2x` is neither a directory nor a file", "because:"]);
    check_fails(dir.path(), "topology --topology a.toml", 1, &["not the JSON of a machine", "unpack"]);
    check_fails(dir.path(), "topology --root nowhere", 1, &["nowhere"]);
    fs::write(dir.path().join("m.json"), "{}").expect("writing");
    check_fails(dir.path(), "topology --topology m.json", 1, &["m.json"]);
}

#[test]
fn what_is_wrong_with_a_vm_file_is_told_with_its_line() {
    let dir = with_vm_file(&VM.replace("cores", "coers"));
    check_fails(dir.path(), "plan a.toml --topology 1n2c@1G", 1, &["a.toml:3:1", "coers", "hint"]);
    check_fails(dir.path(), "plan b.toml", 1, &["cannot read b.toml", "because: No such file"]);
}

#[test]
fn the_example_policy_is_valid_and_has_every_key_as_it_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let example = conuma(dir.path(), "policy example").out;
    fs::write(dir.path().join("p.toml"), &example).expect("writing");
    let ran = conuma(dir.path(), "policy check p.toml");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(ran.out, "ok p.toml is valid\n");
    assert!(ran.err.contains("cannot reach the daemon"), "{}", ran.err);

    let uncommented: Vec<&str> = example.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
    let tuning = uncommented.iter().filter(|line| line.contains(" = ") && !line.contains('"')).copied();
    let tuning: Vec<&str> = tuning.take_while(|line| !line.starts_with("weight")).collect();
    let text = format!("mode = \"off\"\n[tuning]\n{}\n", tuning.join("\n"));
    let rules = Rules::parse(&text, "p.toml").expect(&text);
    assert_eq!(rules.tuning, Tuning::default());
    let keys = serde_json::to_value(Tuning::default()).expect("JSON");
    let docs = include_str!("../../../docs/policy.md");
    for (key, value) in keys.as_object().expect("a struct") {
        assert!(tuning.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        let row = format!("| `{key}` | {value} | ");
        assert!(docs.contains(&row), "docs/policy.md has no row `{row}`");
    }
}

#[test]
fn what_is_wrong_with_a_policy_file_is_told_with_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("p.toml"), "mode = \"auto\"\n[vm.db]\nwieght = 3\n").expect("writing");
    let ran = conuma(dir.path(), "policy check p.toml");
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    for text in ["p.toml:3:1: ", "wieght", "\n3 | wieght = 3\n  | ^\n", "p.toml has 1 problem"] {
        assert!(ran.out.contains(text), "no `{text}` in\n{}", ran.out);
    }
    let json = conuma(dir.path(), "policy check p.toml --json");
    let check: conuma_api::PolicyCheck = serde_json::from_str(&json.out).expect("JSON");
    assert!(json.code == 1 && !check.ok && check.problems[0].line == 3, "{check:?}");
    check_fails(dir.path(), "policy check none.toml", 1, &["cannot read none.toml", "because: No such file"]);
    check_fails(dir.path(), "policy apply p.toml", 1, &["cannot reach the daemon"]);
}

#[test]
fn a_missing_daemon_is_told_with_what_to_do() {
    let dir = with_vm_file(VM);
    for line in [
        "list",
        "show",
        "show a",
        "start a.toml",
        "stop a",
        "events",
        "lend --from a --to b --cores 1",
        "show a --why",
        "plan rebalance",
        "rebalance",
        "history",
        "history 3",
        "policy show",
        "policy mode off",
        "pin a --for 2h",
        "unpin a",
    ] {
        check_fails(dir.path(), line, 1, &["cannot reach the daemon at none.sock", "hint: is conumad running?"]);
    }
}

#[test]
fn wrong_words_are_exit_code_2() {
    let dir = tempfile::tempdir().expect("a directory");
    check_fails(dir.path(), "lend --from a --to b", 2, &["--cores <N>|--cpus <LIST>|--memory <[NODE=]SIZE>"]);
    check_fails(dir.path(), "lent", 2, &["lend"]);
    check_fails(dir.path(), "plan", 2, &["<VM.toml>"]);
    check_fails(dir.path(), "plan a.toml rebalance", 1, &["two plans", "hint: "]);
    check_fails(dir.path(), "show --why", 2, &["<VM>"]);
    check_fails(dir.path(), "history 3 --vm a", 2, &["cannot be used with"]);
    check_fails(dir.path(), "history --state finished", 2, &["under-way"]);
    check_fails(dir.path(), "policy mode on", 2, &["[possible values: off, advise, auto]"]);
    check_fails(dir.path(), "set a --cores 1 --for 1h --preview", 2, &["cannot be used with"]);
    check_fails(dir.path(), "show ../etc", 2, &["cannot name a VM"]);
}

#[test]
fn man_pages_and_completions_are_written() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(conuma(dir.path(), "man pages/man1").code, 0);
    assert!(dir.path().join("pages/man1/conuma-lend.1").is_file());
    assert!(dir.path().join("pages/man1/conuma-policy-apply.1").is_file());
    for shell in ["bash", "zsh", "fish"] {
        assert!(conuma(dir.path(), &format!("completions {shell}")).out.contains("recall"), "{shell}");
    }
}
