//! `cynode task logs`: output of a task as the command printed it.

use super::{
    api_client::ApiClient,
    follow::{FollowMode, LogOptions, follow_part},
    print::{self, clean},
    task::explain_missing_output,
};
use crate::{
    api::tasks::TaskLogs,
    cli::{OutputFormat, TaskLogsArgs},
    exit::Failure,
};
use std::io::BufReader;

/// Shows the output of a task: what there is, or with `--follow` up to its end.
pub(super) fn logs(args: &TaskLogsArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.task.client)?;
    let options = LogOptions {
        follow: args.follow,
        stream: args.stream.map(|stream| stream.as_str().to_owned()),
        tail: args.tail.map(|lines| lines.to_string()),
        since: args.since.clone(),
        timestamps: args.timestamps,
        shows_egress: args.events,
        is_known: false,
    };
    let id = &args.task.id;
    match args.task.client.output {
        OutputFormat::Json if args.follow || args.events => {
            follow_part(&mut api, id, FollowMode::Events, &options).map(drop)
        }
        OutputFormat::Json => document(&mut api, id, &options),
        OutputFormat::Text => {
            let end = follow_part(&mut api, id, FollowMode::Output, &options)?;
            if end.status.is_final() && end.exit_code.is_none() && (args.follow || !end.has_output)
            {
                explain_missing_output(&mut api, id)?;
            }
            Ok(())
        }
    }
}

/// Prints the output as one JSON document, which may be as large as the log.
fn document(api: &mut ApiClient, id: &str, options: &LogOptions) -> Result<(), Failure> {
    let answer = api.stream(&options.path(id, None), &[])?;
    let logs: TaskLogs = serde_json::from_reader(BufReader::new(answer)).map_err(|error| {
        Failure::internal(format!(
            "the log can't be read to its end: {error}; try again"
        ))
    })?;
    for warning in &logs.warnings {
        print::note(&clean(&format!(
            "warning: {}: {}",
            warning.field, warning.detail
        )));
    }
    print::json(&logs)
}
