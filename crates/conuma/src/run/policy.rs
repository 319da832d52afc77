//! `policy`, `pin`, `unpin`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use conuma_api::{
    Client, ClientError, Code, PinOrder, PolicyCheck, PolicyInfo, PolicyMode, PolicyProblem, PolicyText, TermsInfo,
};
use conuma_policy::Rules;
use conuma_topology::VmName;
use serde::Serialize;
use serde_json::json;

use super::watch::now_unix_ms;
use crate::cli::{PinArgs, PolicyArgs, PolicyCommand, PolicyModeChoice, PolicyShowArgs, UnpinArgs};
use crate::console::Console;
use crate::failure;
use crate::render;
use crate::{EXAMPLE_POLICY, Outcome};

pub(super) async fn policy(client: &Client, args: PolicyArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    match args.command {
        PolicyCommand::Show(args) => show(client, &args, console).await,
        PolicyCommand::Check(args) => check(client, &args.file, console).await,
        PolicyCommand::Diff(args) => diff(client, &args.file, console).await,
        PolicyCommand::Apply(args) => apply(client, &args.file, console).await,
        PolicyCommand::Mode(args) => mode(client, args.mode, console).await,
        PolicyCommand::Example => {
            console.result(&json!({ "text": EXAMPLE_POLICY }), |_, _| EXAMPLE_POLICY.to_owned())?;
            Ok(Outcome::Done)
        }
    }
}

/// The policy as `--json` prints it.
#[derive(Serialize)]
struct PolicyView {
    #[serde(flatten)]
    policy: PolicyInfo,
    vms: Vec<VmTerms>,
}

#[derive(Serialize)]
struct VmTerms {
    vm: VmName,
    terms: TermsInfo,
}

async fn show(client: &Client, args: &PolicyShowArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let policy = client.policy().await?;
    if args.text {
        if policy.text.is_empty() {
            console.remark("no policy file is in force; `conuma policy example` prints one to begin with")?;
        }
        console.result(&json!({ "text": &policy.text }), |_, _| policy.text.clone())?;
        return Ok(Outcome::Done);
    }
    let mut vms = Vec::new();
    for vm in client.vms().await? {
        match client.why(&vm.name).await {
            Ok(why) => vms.push(VmTerms { vm: vm.name, terms: why.terms }),
            // It ended meanwhile.
            Err(error) if failure::is_not_found_by(&error) => {}
            // It does not run yet: no terms hold for it.
            Err(ClientError::Problem(problem)) if problem.code == Code::Refused => {}
            Err(error) => return Err(error.into()),
        }
    }
    let now = now_unix_ms();
    console.result(&PolicyView { policy, vms }, |view, style| {
        render::policy::show(&view.policy, view.vms.iter().map(|vm| (&vm.vm, &vm.terms)), now, style)
    })?;
    Ok(Outcome::Done)
}

async fn check(client: &Client, file: &Path, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let text = read(file)?;
    let (check, daemon) = match client.check_policy(text.clone()).await {
        Ok(check) => (check, true),
        Err(error @ ClientError::Connect { .. }) => {
            console.remark(&format!("{error}: only the file itself is checked"))?;
            (offline(&text.text, &name_of(file)), false)
        }
        Err(error) => return Err(error.into()),
    };
    console.result(&check, |check, style| render::policy::check(check, &name_of(file), daemon, style))?;
    Ok(if check.ok { Outcome::Done } else { Outcome::Invalid })
}

async fn diff(client: &Client, file: &Path, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let check = client.check_policy(read(file)?).await?;
    if !check.ok {
        return Err(invalid(&check, file, "cannot be applied"));
    }
    console.result(&check.changes, |changes, style| render::policy::diff(changes, "Would change", style))?;
    Ok(Outcome::Done)
}

async fn apply(client: &Client, file: &Path, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let text = read(file)?;
    let check = client.check_policy(text.clone()).await?;
    let kept = "was not applied: the policy before it stays in force";
    if !check.ok {
        return Err(invalid(&check, file, kept));
    }
    for line in render::policy::concerns(&check.concerns, console.err_style).lines() {
        console.remark(line)?;
    }
    let applied = client.apply_policy(text).await.with_context(|| format!("{} {kept}", file.display()))?;
    console.result(&applied, render::policy::applied)?;
    Ok(Outcome::Done)
}

async fn mode(client: &Client, mode: PolicyModeChoice, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let mode = match mode {
        PolicyModeChoice::Off => PolicyMode::Off,
        PolicyModeChoice::Advise => PolicyMode::Advise,
        PolicyModeChoice::Auto => PolicyMode::Auto,
    };
    console.result(&client.set_policy_mode(mode).await?, render::policy::mode)?;
    Ok(Outcome::Done)
}

pub(super) async fn pin(client: &Client, args: &PinArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let order = PinOrder { until_unix_ms: None, for_ms: args.how_long.map(millis) };
    let answer = client.pin(&args.vm, order).await?;
    let now = now_unix_ms();
    console.result(&answer, |answer, style| render::policy::pinned(&args.vm, answer, now, style))?;
    Ok(Outcome::Done)
}

pub(super) async fn unpin(client: &Client, args: &UnpinArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let answer = client.unpin(&args.vm).await?;
    console.result(&answer, |answer, style| render::policy::unpinned(&args.vm, answer, style))?;
    Ok(Outcome::Done)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn name_of(file: &Path) -> String {
    file.display().to_string()
}

fn read(file: &Path) -> anyhow::Result<PolicyText> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(PolicyText { text, name: Some(name_of(file)) })
}

/// Checks the file alone.
fn offline(text: &str, file: &str) -> PolicyCheck {
    let number = |number: Option<usize>| number.map_or(0, |number| u32::try_from(number).unwrap_or(u32::MAX));
    match Rules::parse(text, file) {
        Ok(_) => PolicyCheck { ok: true, ..PolicyCheck::default() },
        Err(error) => {
            let problems = error.problems.into_iter().map(|problem| PolicyProblem {
                line: number(problem.line),
                column: number(problem.column),
                message: problem.message,
                hint: problem.hint,
                excerpt: problem.excerpt.unwrap_or_default(),
            });
            PolicyCheck { ok: false, problems: problems.collect(), ..PolicyCheck::default() }
        }
    }
}

fn invalid(check: &PolicyCheck, file: &Path, verdict: &str) -> anyhow::Error {
    let file = name_of(file);
    let mut what = format!("{file} {verdict}\n{}", render::policy::problems(&check.problems, &file));
    for concern in &check.concerns {
        what.push_str(&format!("{concern}\n"));
    }
    anyhow::anyhow!(what.trim_end().to_owned())
}
