//! The policy in force: applied, refused, switched, kept; pins, terms, and who may what.

use conuma_api::{Client, Code, CoreDemand, Demand, EventKind, Holder, PinOrder, PolicyMode, PolicyText, PriorityInfo};

use crate::balance::{apply, cores_of, gets, known, two_idle_vms};
use crate::harness::{Host, cpus, lend, name, problem, recall, set, vm_file};

fn text(text: &str) -> PolicyText {
    PolicyText { text: text.into(), name: Some("p.toml".into()) }
}

async fn pinned(host: &Host) -> Vec<(String, String)> {
    let pins = host.client.policy().await.unwrap().pins;
    pins.into_iter().map(|pin| (pin.vm.to_string(), pin.by)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_nothing_is_in_force_and_nothing_moves() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let policy = host.client.policy().await.unwrap();
    assert_eq!((policy.mode, policy.text.as_str(), policy.applied_at), (PolicyMode::Off, "", None));
    // Nor does what people do pin anything.
    host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert!(pinned(&host).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_with_errors_changes_nothing_and_its_lines_are_told() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let good = "mode = \"advise\"\n[vm.a]\nweight = 300\n";
    host.client.apply_policy(text(good)).await.unwrap();
    let bad = "mode = \"advise\"\n[vm.a]\nwieght = 300\n[vm.b]\nweight = -1\n";
    let (code, message) = problem(host.client.apply_policy(text(bad)).await.expect_err("errors"));
    assert_eq!(code, Code::BadPolicy);
    assert!(message.contains("p.toml:3:1") && message.contains("p.toml:5:"), "{message}");
    let check = host.client.check_policy(text(bad)).await.unwrap();
    assert!(!check.ok && check.problems.len() == 2, "{check:#?}");
    assert_eq!((check.problems[0].line, check.problems[0].excerpt.as_str()), (3, "wieght = 300"));
    let policy = host.client.policy().await.unwrap();
    assert_eq!((policy.text.as_str(), policy.mode), (good, PolicyMode::Advise));
    assert_eq!(host.client.why(&name("a")).await.unwrap().terms.weight, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_hold_is_refused_and_so_is_a_vm_with_which_it_could_not() {
    let host = Host::boot().await;
    let _guests = (host.guest("a"), host.guest("b"));
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    let (code, message) = problem(
        host.client
            .apply_policy(text("mode = \"auto\"\n[vm.a]\nguarantee = { cores = 9 }\n"))
            .await
            .expect_err("too much"),
    );
    assert!(code == Code::Refused && message.contains("9 cores"), "{message}");
    assert_eq!(host.client.policy().await.unwrap().text, "");
    // Also if it is so only at night.
    let night = "mode = \"advise\"\n[[vm.a.window]]\nfrom = \"22:00\"\nto = \"06:00\"\nguarantee = { cores = 7 }\n";
    host.client.apply_policy(text(night)).await.unwrap();
    let (code, message) = problem(host.client.start(&vm_file("b", "4-5"), true).await.expect_err("no room"));
    assert!(code == Code::Refused && message.contains("the policy cannot hold"), "{message}");
    let (code, _) = problem(host.client.preview_start(&vm_file("b", "4-5")).await.expect_err("no room"));
    assert_eq!(code, Code::Refused);
    host.client.apply_policy(text("mode = \"off\"")).await.unwrap();
    host.client.start(&vm_file("b", "4-5"), true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_holds_and_is_told() {
    let host = Host::boot().await;
    let _guests = two_idle_vms(&host).await;
    let mut events = host.client.events(None, &["policy-applied"]).await.unwrap();
    let other = "mode = \"advise\"\n[vm.a]\nweight = 300\npriority = \"high\"\n[[vm.a.window]]\nfrom = \"00:00\"\n\
                 to = \"24:00\"\nlimit = { cores = 5 }\n";
    let check = host.client.check_policy(text(other)).await.unwrap();
    assert!(check.ok && check.changes.iter().any(|change| change.contains("vm.a.weight = 300")), "{check:#?}");
    let applied = host.client.apply_policy(text(other)).await.unwrap();
    assert_eq!((applied.changes, applied.policy.mode), (check.changes, PolicyMode::Advise));
    assert_eq!(applied.policy.source.as_deref(), Some("p.toml"));
    assert!(applied.policy.applied_at.is_some());
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert!(matches!(event.what, EventKind::PolicyApplied { mode: PolicyMode::Advise, .. }), "{event:?}");
    let why = host.client.why(&name("a")).await.unwrap();
    let terms = why.terms;
    assert_eq!((terms.weight, terms.priority, terms.in_policy), (300, PriorityInfo::High, true));
    assert_eq!(terms.limit, Demand { cores: Some(CoreDemand::Count(5)), memory: None });
    assert_eq!(terms.windows.len(), 1);
    let outlook = why.outlook.expect("an outlook");
    assert_eq!(outlook.cores_now, 4);
    assert!(!host.client.why(&name("b")).await.unwrap().terms.in_policy);
    let switched = host.client.set_policy_mode(PolicyMode::Auto).await.unwrap();
    assert_eq!((switched.mode, switched.text.as_str()), (PolicyMode::Auto, other));
    let (code, _) = problem(host.client.set_policy_mode(PolicyMode::Unknown).await.expect_err("no mode"));
    assert_eq!(code, Code::BadRequest);
    let (code, _) = problem(host.client.why(&name("nobody")).await.expect_err("no VM"));
    assert_eq!(code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_divide_and_change() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    a.run(8.0);
    b.run(8.0);
    apply(&host, "auto", "").await;
    host.eventually("halves", || async { (cores_of(&host, "a").await, cores_of(&host, "b").await) == (4, 4) }).await;
    apply(&host, "auto", "[vm.b]\nweight = 300\n").await;
    host.eventually("a fourth and the rest", || async {
        (cores_of(&host, "a").await, cores_of(&host, "b").await) == (2, 6)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hands_off_is_left_alone() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    b.run(8.0);
    a.run(6.0);
    apply(&host, "auto", "[vm.b]\nhands_off = true\n").await;
    gets(&host, "a", 6).await;
    assert_eq!(cores_of(&host, "b").await, 2);
    let outlook = host.client.why(&name("b")).await.unwrap().outlook.expect("an outlook");
    assert_eq!(outlook.held_why.map(|why| why.code), Some("hands-off".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_lend_is_left_so_until_it_is_recalled() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(pinned(&host).await, [("a".into(), "lend".into()), ("b".into(), "lend".into())]);
    a.run(8.0);
    let before = a.state().reports;
    host.eventually("the policy has looked", || async { a.state().reports > before + 20 }).await;
    assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-1".into(), "2-5".into()));
    let why = host.client.why(&name("a")).await.unwrap();
    assert_eq!(why.pin.expect("a pin").by, "lend");
    // A pin by name outlives the loan.
    assert!(host.client.pin(&name("b"), PinOrder::default()).await.unwrap().was_pinned);
    host.transfer(recall("a")).await;
    assert_eq!(pinned(&host).await, [("b".into(), "pin".into())]);
    gets(&host, "a", 6).await;
    b.run(8.0);
    assert!(host.client.unpin(&name("b")).await.unwrap().was_pinned);
    assert!(!host.client.unpin(&name("b")).await.unwrap().was_pinned);
    gets(&host, "b", 4).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_end_by_themselves() {
    let host = Host::boot().await;
    let _guests = two_idle_vms(&host).await;
    apply(&host, "advise", "").await;
    let mut events = host.client.events(None, &["vm-unpinned"]).await.unwrap();
    let pin = host.client.pin(&name("a"), PinOrder { for_ms: Some(300), until_unix_ms: None }).await.unwrap();
    assert!(pin.pin.expect("a pin").until_unix_ms.is_some() && !pin.was_pinned);
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert_eq!(event.what, EventKind::VmUnpinned { vm: name("a") });
    assert!(pinned(&host).await.is_empty());
    let past = PinOrder { until_unix_ms: Some(1), for_ms: None };
    let (code, _) = problem(host.client.pin(&name("a"), past).await.expect_err("over already"));
    assert_eq!(code, Code::BadRequest);
    let begun = host.client.transfer_pinned(set("b", cpus("4-5")), Some(60_000)).await.unwrap();
    let pins = host.client.policy().await.unwrap().pins;
    assert_eq!((pins[0].by.as_str(), pins[0].transfer), ("set", Some(begun.id)));
    host.client.stop(&name("b"), conuma_api::StopQuery { force: true, ..Default::default() }).await.unwrap();
    host.eventually("the pin is gone with its VM", || async { pinned(&host).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_mode_policy_and_pins() {
    let mut host = Host::boot().await;
    let guests = two_idle_vms(&host).await;
    apply(&host, "auto", "[vm.b]\nweight = 300\n").await;
    host.client.set_policy_mode(PolicyMode::Advise).await.unwrap();
    host.client.pin(&name("a"), PinOrder::default()).await.unwrap();
    let before = host.client.policy().await.unwrap();
    host.stop_daemon().await;
    host.start_daemon().await;
    assert_eq!(host.client.policy().await.unwrap(), before);
    host.settled(&["a", "b"]).await;
    known(&host, &["b"]).await;
    assert_eq!(host.client.why(&name("b")).await.unwrap().terms.weight, 300);
    // What cannot be read is no reason not to start.
    host.stop_daemon().await;
    std::fs::write(host.state_file("policy.toml"), "mode = ").unwrap();
    std::fs::write(host.state_file("pins.json"), "nonsense").unwrap();
    host.start_daemon().await;
    let policy = host.client.policy().await.unwrap();
    assert!(policy.mode == PolicyMode::Off && policy.pins.is_empty(), "{policy:#?}");
    // A mode is kept also where no policy was ever applied.
    host.stop_daemon().await;
    for file in ["policy.toml", "policy.json"] {
        std::fs::remove_file(host.state_file(file)).unwrap();
    }
    host.start_daemon().await;
    host.client.set_policy_mode(PolicyMode::Advise).await.unwrap();
    host.stop_daemon().await;
    host.start_daemon().await;
    assert_eq!(host.client.policy().await.unwrap().mode, PolicyMode::Advise);
    drop(guests);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_file_is_applied_when_it_has_changed() {
    let mut host = Host::boot_with(|settings| settings.policy = Some(settings.state.join("file.toml"))).await;
    let _a = host.guest("a");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    let file = host.state_file("file.toml");
    let mode = async |host: &Host| host.client.policy().await.unwrap().mode;
    assert_eq!(mode(&host).await, PolicyMode::Off);
    for (text, expected) in [
        ("mode = \"advise\"", PolicyMode::Advise),
        // It is the same: what was switched since stays.
        ("mode = \"advise\"", PolicyMode::Auto),
        // What is wrong, or cannot hold on this host, is not applied.
        ("mode = \"often\"", PolicyMode::Auto),
        ("mode = \"advise\"\n[vm.a]\nguarantee = { cores = 99 }", PolicyMode::Auto),
        ("mode = \"off\"", PolicyMode::Off),
    ] {
        host.stop_daemon().await;
        std::fs::write(&file, text).unwrap();
        host.start_daemon().await;
        assert_eq!(mode(&host).await, expected, "{text}");
        host.client.set_policy_mode(PolicyMode::Auto).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_may_look_and_check_but_change_nothing() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let viewer = Client::new(host.client.socket().with_file_name(conuma_api::VIEWERS));
    assert_eq!(viewer.policy().await.unwrap().mode, PolicyMode::Off);
    assert!(viewer.check_policy(text("mode = \"auto\"")).await.unwrap().ok);
    viewer.plan_rebalance().await.unwrap();
    viewer.why(&name("a")).await.unwrap();
    viewer.history(&conuma_api::HistoryQuery::default()).await.unwrap();
    let refused = [
        viewer.apply_policy(text("mode = \"auto\"")).await.map(drop),
        viewer.set_policy_mode(PolicyMode::Auto).await.map(drop),
        viewer.rebalance().await.map(drop),
        viewer.pin(&name("a"), PinOrder::default()).await.map(drop),
        viewer.unpin(&name("a")).await.map(drop),
    ];
    for refused in refused {
        let (code, _) = problem(refused.expect_err("only looking"));
        assert!(matches!(code, Code::Refused | Code::NotFound), "{code}");
    }
    assert_eq!(host.client.policy().await.unwrap().mode, PolicyMode::Off);
    assert!(host.held(&Holder::Vm(name("a"))).await.cpus.len() == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_bounds_what_a_vm_gets() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "[vm.b]\nlimit = { cores = 4 }\n").await;
    b.run(8.0);
    gets(&host, "b", 4).await;
    let before = a.state().reports;
    host.eventually("the policy has looked", || async { a.state().reports > before + 20 }).await;
    assert_eq!(cores_of(&host, "b").await, 4);
}
