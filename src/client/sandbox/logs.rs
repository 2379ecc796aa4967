//! `cynode sandbox logs`: output of a command in a sandbox, as it was printed.

use super::{
    events::{EventPrinter, ExecEnd, Show},
    exec::is_passing,
    target::Target,
};
use crate::{
    api::sandboxes::exec::ExecList,
    cli::{OutputFormat, SandboxLogsArgs},
    client::{api_client::ApiClient, follow::Outage, paths, print},
    exit::{Exit, Failure},
};
use std::{thread, time::Duration};

/// Time for which the orchestrator may be unreachable.
const RECONNECT_TIMEOUT: Duration = Duration::from_mins(10);
/// Pause between two attempts to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Prints what there is, or with `--follow` all up to the end of the command.
pub(super) fn logs(args: &SandboxLogsArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.sandbox.client)?;
    let target = Target::sandbox(&args.sandbox.name);
    let exec = match &args.exec {
        Some(exec) => exec.clone(),
        None => latest(&mut api, &target)?,
    };
    if args.sandbox.client.output == OutputFormat::Json && !args.follow {
        let document: serde_json::Value = api.get(&target.exec(&exec, "/logs"))?;
        return print::json(&document);
    }
    let (show, encoding) = match args.sandbox.client.output {
        OutputFormat::Json => (Show::Events, "text"),
        OutputFormat::Text => (Show::Output, "base64"),
    };
    let follow = if args.follow { "true" } else { "false" };
    let query = [("follow", Some(follow)), ("encoding", Some(encoding))];
    let path = paths::with_query(&target.exec(&exec, "/logs"), &query);
    let mut printer = EventPrinter::new(show, args.timestamps);
    let mut outage = Outage::default();
    let mut is_found = false;
    loop {
        let headers = [
            ("accept", "text/event-stream"),
            ("last-event-id", printer.last_id.as_str()),
        ];
        let known = if printer.last_id.is_empty() { 1 } else { 2 };
        match api.stream(&path, &headers[..known]) {
            Ok(stream) => {
                is_found = true;
                let ended = printer.print_all(stream, &mut outage)?;
                match ended {
                    Some(exec) if args.follow => return ExecEnd::from(&exec).exit(),
                    None if args.follow => {}
                    _ => return Ok(()),
                }
            }
            Err(failure) if !is_found || !is_passing(&failure) => return Err(failure),
            Err(_) => outage.note(),
        }
        if outage.begin().elapsed() > RECONNECT_TIMEOUT {
            let text = format!(
                "the orchestrator at {} is still unreachable; the command goes on. Resume with: {}",
                api.url,
                target.follow_hint(&exec)
            );
            return Err(Failure::new(Exit::Unreachable, text));
        }
        thread::sleep(RECONNECT_INTERVAL);
    }
}

/// Id of the exec that was started last.
fn latest(api: &mut ApiClient, target: &Target) -> Result<String, Failure> {
    let list: ExecList = api.get(&target.path("/execs"))?;
    let latest = list.execs.into_iter().max_by_key(|exec| exec.started_at);
    latest.map(|exec| exec.exec_id.to_string()).ok_or_else(|| {
        let text = "no command has run in this sandbox; run one with: cynode sandbox exec NAME CMD";
        Failure::new(Exit::NotFound, text)
    })
}
