//! Errors as people read them: each cause once, then what to do.

use std::io;

use conuma_api::{ClientError, Code};

use crate::Outcome;
use crate::style::Style;

/// What may be done about an error, beside the error.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct WithHint {
    /// What went wrong.
    pub what: String,
    /// What may be done.
    pub hint: String,
}

/// Whether whoever read our output has gone, as `head` does: no error.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors.into_iter().any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The exit code of an error: a refusal is told apart from a failure.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let problem = client_error(error).and_then(ClientError::problem);
    match problem.map(|problem| problem.code) {
        Some(Code::Refused) => Outcome::Refused.exit_code(),
        _ => Outcome::FAILED,
    }
}

/// Whether the daemon does not know what was named.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    client_error(error).is_some_and(is_not_found_by)
}

/// The same of the client's own error.
pub(crate) fn is_not_found_by(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.code == Code::NotFound)
}

/// The same error with the names that would have been known.
pub(crate) fn with_names(error: anyhow::Error, names: &[String]) -> anyhow::Error {
    let what = error.to_string();
    let hint = match names {
        [] => "no VM is running; `conuma start VM.toml` starts one".to_owned(),
        names => format!("the VMs here are {}", names.join(", ")),
    };
    error.context(WithHint { what, hint })
}

fn client_error(error: &anyhow::Error) -> Option<&ClientError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn hint(error: &anyhow::Error) -> Option<String> {
    let own = error.downcast_ref::<WithHint>().map(|own| own.hint.clone());
    own.or_else(|| client_error(error)?.hint())
}

/// The chain of causes, one a line, and a hint.
pub fn describe(error: &anyhow::Error, style: Style) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !told.iter().any(|before| before.contains(&text)) {
            told.push(text);
        }
    }
    let mut text = String::new();
    for (index, cause) in told.iter().enumerate() {
        let cause = cause.trim_end().replace('\n', "\n  ");
        if index == 0 {
            text.push_str(&format!("{} {cause}\n", style.bad("error:")));
        } else {
            text.push_str(&format!("  because: {cause}\n"));
        }
    }
    if let Some(hint) = hint(error) {
        text.push_str(&format!("{} {hint}\n", style.good("hint:")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use conuma_api::Problem;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let error = anyhow!("no such file").context("cannot open a.toml: no such file").context("cannot start `a`");
        let text = describe(&error, Style::PLAIN);
        assert_eq!(text, "error: cannot start `a`\n  because: cannot open a.toml: no such file\n");
    }

    #[test]
    fn a_refusal_has_its_own_exit_code_and_the_daemons_hint() {
        let problem = Problem::new(Code::Refused, "a would fall below its guarantee").with_hint("--below-guarantee");
        let error = anyhow::Error::from(ClientError::from(problem)).context("cannot lend");
        assert_eq!(exit_code(&error), 4);
        let text = describe(&error, Style::PLAIN);
        assert!(text.ends_with("because: a would fall below its guarantee\nhint: --below-guarantee\n"), "{text}");
        assert_eq!(exit_code(&anyhow!("anything else")), 1);
    }

    #[test]
    fn a_missing_daemon_is_told_once_with_what_to_do() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = ClientError::Connect { socket: "/run/conuma/conumad.sock".into(), source };
        let text = describe(&error.into(), Style::PLAIN);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("hint: is conumad running?"), "{text}");
    }
}
