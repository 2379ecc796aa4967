//! Output of the checks: for people a line each with its fix below, for programs JSON.

use super::{Check, Status};
use crate::{
    cli::OutputFormat,
    exit::Failure,
    terminal::{print_json, print_line},
    text::clean,
};
use serde::Serialize;

/// Output for programs.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether no check failed.
    ok: bool,
    checks: &'a [Check],
}

/// Prints all checks on stdout.
pub(super) fn show(checks: &[Check], output: OutputFormat) -> Result<(), Failure> {
    if output == OutputFormat::Json {
        let ok = checks.iter().all(|check| check.status != Status::Fail);
        return print_json(&Report { ok, checks });
    }
    checks.iter().try_for_each(|check| print_line(&text(check)))
}

fn text(check: &Check) -> String {
    const INDENT: &str = "      ";
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
    };
    let fixed = if check.fixed { " (fixed)" } else { "" };
    // A message of podman can have several lines.
    let mut detail = check.detail.lines().map(clean);
    let first = detail.next().unwrap_or_default();
    let mut text = format!("{status:<4}  {:<14}  {first}{fixed}", check.name);
    for line in detail {
        text += &format!("\n{INDENT}{line}");
    }
    for (n, line) in check.fix.iter().flat_map(|fix| fix.lines()).enumerate() {
        let lead = if n == 0 { "fix: " } else { "     " };
        text += &format!("\n{INDENT}{lead}{}", clean(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_fixes_below() {
        let ok = Check::ok("disk", "plenty").fixed();
        assert_eq!(text(&ok), "ok    disk            plenty (fixed)");
        let fail = Check::fail("sandbox", "tried:\nthis\u{1b}[2J", "do this\nand that");
        assert_eq!(
            text(&fail),
            "fail  sandbox         tried:\n      this [2J\n      fix: do this\n           and that"
        );
    }

    #[test]
    fn json_has_fix_only_where_one_exists() {
        let check = |check: &Check| serde_json::to_value(check).unwrap();
        assert_eq!(
            check(&Check::ok("disk", "plenty")),
            serde_json::json!({"name": "disk", "status": "ok", "detail": "plenty"})
        );
        assert_eq!(
            check(&Check::warn("disk", "little", "more").fixed()),
            serde_json::json!({
                "name": "disk", "status": "warn", "detail": "little", "fix": "more", "fixed": true,
            })
        );
    }
}
