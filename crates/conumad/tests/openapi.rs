//! `docs/openapi.json` says what the daemon answers.
//!
//! `CONUMA_REGENERATE=1 cargo test -p conumad --test openapi` writes it anew.

use std::path::Path;

#[test]
fn description_is_in_step() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let made = conumad::http::openapi();
    if std::env::var_os("CONUMA_REGENERATE").is_some_and(|value| value == "1") {
        std::fs::write(&path, made).expect("writing");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "docs/openapi.json is out of step: run CONUMA_REGENERATE=1 cargo test -p conumad --test openapi"
    );
}

#[test]
fn every_path_is_described() {
    let description: serde_json::Value = serde_json::from_str(&conumad::http::openapi()).expect("JSON");
    let paths: Vec<&String> = description["paths"].as_object().expect("paths").keys().collect();
    use conuma_api::Paths;
    for path in [
        Paths::HOST,
        Paths::LEDGER,
        Paths::CHECK,
        Paths::VMS,
        "/v1/vms/{name}",
        "/v1/vms/{name}/release",
        Paths::TRANSFERS,
        "/v1/transfers/{id}",
        Paths::POLICY,
        Paths::POLICY_CHECK,
        Paths::POLICY_MODE,
        Paths::PLAN_REBALANCE,
        Paths::REBALANCE,
        "/v1/vms/{name}/why",
        "/v1/vms/{name}/pin",
        Paths::HISTORY,
        "/v1/history/{id}",
        Paths::EVENTS,
        Paths::OPENAPI,
    ] {
        assert!(paths.iter().any(|described| *described == path), "{path}");
    }
    assert_eq!(paths.len(), 19);
}
