//! `cynode sandbox events`: what the commands in a sandbox asked hosts for.

use super::target::Target;
use crate::{
    cli::{OutputFormat, SandboxEventsArgs},
    client::{
        api_client::ApiClient,
        egress_events::egress_line,
        follow::{parse, print_event, read_to_end},
        paths,
        print::{self, clean},
        sse::SseEvent,
    },
    exit::Failure,
};
use serde::Deserialize;

/// What is to be known of the events.
#[derive(Deserialize)]
struct Status {
    detail: String,
}

/// Prints the events so far, or with `--follow` all up to the end of the sandbox.
pub(super) fn events(args: &SandboxEventsArgs) -> Result<(), Failure> {
    let client = &args.sandbox.client;
    let mut api = ApiClient::from_args(client)?;
    let target = Target::sandbox(&args.sandbox.name).resolve(&mut api)?;
    let follow = if args.follow { "true" } else { "false" };
    let path = paths::with_query(&target.path("/events"), &[("follow", Some(follow))]);
    let going_on = "the sandbox goes on, and its events are kept. Repeat the command later";
    let is_json = client.output == OutputFormat::Json;
    let take = |event: &SseEvent| {
        let is_end = event.name == "end";
        if is_json {
            print_event(event)?;
        } else if event.name == "egress" {
            print::line(&egress_line(&event.data, args.timestamps)?)?;
        } else if event.name == "status" {
            let Status { detail } = parse(&event.data)?;
            print::note(&clean(&detail));
        }
        Ok(is_end.then_some(()))
    };
    read_to_end(&mut api, &path, true, going_on, take)
}
