//! Errors as people read them: each cause once, then what to do.

use crate::style::Style;

/// The chain of causes, one a line, and hints.
pub fn describe(error: &anyhow::Error, hints: &[String], style: Style) -> String {
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
    for hint in hints {
        text.push_str(&format!("{} {hint}\n", style.good("hint:")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let error = anyhow!("no such file").context("cannot open a.toml: no such file").context("cannot start `a`");
        let text = describe(&error, &["look again".into()], Style::PLAIN);
        assert_eq!(
            text,
            "error: cannot start `a`\n  because: cannot open a.toml: no such file\nhint: look again\n"
        );
    }
}
