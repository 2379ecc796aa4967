//! Sandboxes as a list, one of them, their lifetime, and their removal.

use super::target::Target;
use crate::{
    api::{
        sandboxes::{
            RenewSandbox, Sandbox, SandboxList, SandboxStatus,
            exec::{Exec, ExecList, ExecStatus},
        },
        time::Time,
    },
    cli::{OutputFormat, SandboxArgs, SandboxListArgs, SandboxRenewArgs, SandboxesArgs},
    client::{
        api_client::ApiClient,
        many, paths,
        print::{self, clean},
        quote::quoted,
        task_get::{hosts_text, opened_text, secrets_text},
    },
    exit::Failure,
};
use http::Method;
use serde::Serialize;
use std::time::Duration;

/// Sandbox with its execs, as a document.
#[derive(Serialize)]
struct SandboxWithExecs<'a> {
    #[serde(flatten)]
    sandbox: &'a Sandbox,
    execs: &'a [Exec],
}

pub(super) fn list(args: &SandboxListArgs) -> Result<(), Failure> {
    let limit = args.limit.to_string();
    let query = [
        ("limit", Some(limit.as_str())),
        ("all", args.all.then_some("true")),
        ("cursor", args.cursor.as_deref()),
    ];
    let path = paths::with_query("/v1/sandboxes", &query);
    let page: SandboxList = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&page);
    }
    let now = Time::now();
    let has_owners = page.sandboxes.iter().any(|sandbox| sandbox.owner.is_some());
    let mut head = vec!["NAME", "ID", "STATUS", "NODE", "IMAGE", "AGE", "ENDS IN"];
    if has_owners {
        head.insert(2, "OWNER");
    }
    let rows = page.sandboxes.iter().map(|sandbox| {
        let mut row = row(sandbox, now);
        if has_owners {
            row.insert(2, clean(sandbox.owner.as_deref().unwrap_or("-")));
        }
        row
    });
    print::wide_table(&head, rows)?;
    if !page.next_cursor.is_empty() {
        print::note(&format!(
            "More sandboxes: --cursor {}",
            clean(&page.next_cursor)
        ));
    }
    Ok(())
}

fn row(sandbox: &Sandbox, now: Time) -> Vec<String> {
    vec![
        clean(sandbox.name.as_deref().unwrap_or("-")),
        sandbox.id.to_string(),
        status(sandbox),
        clean(sandbox.node_slug.as_deref().unwrap_or("-")),
        clean(&sandbox.image),
        print::age(sandbox.created_at),
        ends_in(sandbox, now),
    ]
}

/// Status, with the reason of an end.
fn status(sandbox: &Sandbox) -> String {
    match sandbox.reason {
        Some(reason) => format!("{} ({})", sandbox.status.as_str(), reason.as_str()),
        None => sandbox.status.as_str().to_owned(),
    }
}

/// Time that a sandbox has left.
fn ends_in(sandbox: &Sandbox, now: Time) -> String {
    match sandbox.expires_at {
        Some(end) if sandbox.status != SandboxStatus::Ended => span(end.since(now).as_secs()),
        _ => "-".to_owned(),
    }
}

/// Time in one unit, such as `5m`.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

pub(super) fn show(args: &SandboxArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let target = Target::sandbox(&args.name);
    let sandbox: Sandbox = api.get(&target.path(""))?;
    let execs = match sandbox.status {
        // It may end before the second call.
        SandboxStatus::Running => api.get::<ExecList>(&target.path("/execs")),
        _ => Ok(ExecList { execs: Vec::new() }),
    };
    let execs = execs.map_or_else(|_| Vec::new(), |list| list.execs);
    if args.client.output == OutputFormat::Json {
        let (sandbox, execs) = (&sandbox, &execs[..]);
        return print::json(&SandboxWithExecs { sandbox, execs });
    }
    let text = |text: Option<&str>| clean(text.unwrap_or("-"));
    let time = |time: Option<Time>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    let seconds = |seconds: u64| span(seconds);
    let mut pairs = vec![
        ("id", sandbox.id.to_string()),
        ("name", text(sandbox.name.as_deref())),
        ("status", status(&sandbox)),
        ("detail", text(sandbox.detail.as_deref())),
        ("owner", text(sandbox.owner.as_deref())),
        ("node", text(sandbox.node_slug.as_deref())),
        ("image", clean(&sandbox.image)),
    ];
    pairs.extend(settings(&sandbox));
    pairs.extend([
        ("lifetime", seconds(sandbox.lifetime_seconds)),
        ("idle timeout", seconds(sandbox.idle_timeout_seconds)),
        ("created", sandbox.created_at.to_string()),
        ("started", time(sandbox.started_at)),
        ("ends", time(sandbox.expires_at)),
        ("ended", time(sandbox.ended_at)),
    ]);
    pairs.retain(|(name, value)| value != "-" || matches!(*name, "name" | "node"));
    print::pairs(pairs)?;
    if execs.is_empty() {
        return Ok(());
    }
    print::line("")?;
    let rows = execs.iter().map(exec_row);
    print::table(["EXEC", "STATUS", "AGE", "COMMAND"], rows)
}

/// Secrets and network of a sandbox, where its user asked for them.
fn settings(sandbox: &Sandbox) -> impl Iterator<Item = (&'static str, String)> {
    let (secrets, egress) = (&sandbox.secrets, sandbox.egress.as_ref());
    let policy = sandbox.network_policy;
    let all = [
        (
            "secrets",
            (!secrets.is_empty()).then(|| secrets_text(secrets)),
        ),
        ("network", policy.map(|policy| policy.as_str().to_owned())),
        ("hosts", egress.map(hosts_text)),
        ("tls opened", egress.and_then(opened_text)),
    ];
    all.into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
}

fn exec_row(exec: &Exec) -> [String; 4] {
    let status = match (exec.status, exec.exit_code) {
        (ExecStatus::Exited, Some(code)) => format!("exit {code}"),
        (status, _) => status.as_str().to_owned(),
    };
    [
        exec.exec_id.to_string(),
        status,
        print::age(exec.started_at),
        clean(&quoted(&exec.command)),
    ]
}

pub(super) fn renew(args: &SandboxRenewArgs) -> Result<(), Failure> {
    let client = &args.sandbox.client;
    let target = Target::sandbox(&args.sandbox.name);
    let body = RenewSandbox {
        lifetime_seconds: whole_seconds(args.lifetime),
    };
    let mut api = ApiClient::from_args(client)?;
    let sandbox: Sandbox = api.call(Method::POST, &target.path("/renew"), Some(&body))?;
    if client.output == OutputFormat::Json {
        return print::json(&sandbox);
    }
    match sandbox.expires_at {
        Some(end) => print::line(&format!(
            "ends at {end}, in {}",
            span(end.since(Time::now()).as_secs())
        )),
        None => print::line("renewed"),
    }
}

/// Seconds of a time, of which a started one counts.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

pub(super) fn remove(args: &SandboxesArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let path = |name: &str| Target::sandbox(name).path("");
    many::delete(&mut api, args.client.output, &args.names, "removed", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn started_second_counts() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_mins(2)), 120);
    }
}
