//! `cynode models pull`: the events of a pull, with a progress bar at a terminal.

use super::{check_name, choice, nodes};
use crate::{
    api::models::{PullEnd, PullModel, PullProgress, PullStatus},
    cli::{ModelArgs, OutputFormat},
    client::{
        api_client::{ApiClient, Payload},
        paths,
        print::{self, clean},
        sse::{SseEvent, SseReader},
    },
    exit::{Exit, Failure},
    http::request::parse_json,
};
use http::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use std::{
    io::{self, IsTerminal as _, Read},
    time::Duration,
};

/// Interval at which the bar moves while there is no progress.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Characters of a digest that are shown.
const SHOWN_DIGEST_CHARS: usize = 12;

/// Pulls a model at a node, and shows the progress.
pub(super) fn pull(args: &ModelArgs) -> Result<(), Failure> {
    check_name(&args.model)?;
    let mut api = ApiClient::from_args(&args.client)?;
    let slug = match &args.node {
        Some(slug) => slug.clone(),
        None => choice::serving(&nodes(&mut api)?)?,
    };
    let wanted = PullModel {
        model: args.model.clone(),
    };
    let body = serde_json::to_vec(&wanted).map_err(Failure::internal)?;
    let path = paths::node(&slug, "/models:pull");
    let headers = [("accept", "text/event-stream")];
    let payload = Payload::Bytes(&body, "application/json");
    let answer = api.exchange(&Method::POST, &path, &headers, payload)?;
    let answer = api.check_status(answer)?;
    let name = format!("{} at {}", clean(&args.model), clean(&slug));
    let mut display = Display::new(&name);
    let end = follow(answer.into_body().into_reader(), |progress| {
        display.show(progress);
    });
    drop(display);
    let PullEnd { status, error } = end?;
    if status == PullStatus::Failed {
        let error = error.unwrap_or_else(|| "no reason given".to_owned());
        let text = format!("{name} was not pulled: {}", clean(&error));
        return Err(Failure::new(Exit::Internal, text));
    }
    if args.client.output == OutputFormat::Json {
        return print::json(&serde_json::json!({"node_slug": slug, "model": args.model}));
    }
    print::line(&format!("{} has {}", clean(&slug), clean(&args.model)))
}

/// Reads the events of a pull up to its end.
fn follow(
    stream: impl Read,
    mut on_progress: impl FnMut(&PullProgress),
) -> Result<PullEnd, Failure> {
    let mut events = SseReader::new(stream);
    while let Some(event) = events.next()? {
        match event.name.as_str() {
            "progress" => on_progress(&parse(&event)?),
            "end" => return parse(&event),
            _ => {}
        }
    }
    let text = "the connection broke off; the same command continues where the pull ended";
    Err(Failure::new(Exit::Unreachable, text))
}

fn parse<T: DeserializeOwned>(event: &SseEvent) -> Result<T, Failure> {
    parse_json(event.data.as_bytes()).map_err(|problem| {
        Failure::internal(format!(
            "the orchestrator sent an event that this cynode does not understand: {}",
            problem.detail
        ))
    })
}

/// Progress of a pull: a bar for each part of the model at a terminal, else each step once, as a line on stderr.
struct Display {
    name: String,
    bar: Option<ProgressBar>,
    /// Step or part that was shown last.
    last: String,
}

impl Display {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            bar: io::stderr().is_terminal().then(|| {
                let target = ProgressDrawTarget::stderr();
                let bar = ProgressBar::with_draw_target(None, target);
                bar.set_style(style(false));
                bar.set_message(format!("pulling {name}"));
                bar.enable_steady_tick(TICK_INTERVAL);
                bar
            }),
            last: String::new(),
        }
    }

    fn show(&mut self, progress: &PullProgress) {
        let step = step(progress);
        let is_new = step != self.last;
        let Some(bar) = &self.bar else {
            if is_new {
                print::note(&format!("{}: {step}{}", self.name, size(progress)));
            }
            self.last = step;
            return;
        };
        if is_new {
            bar.set_style(style(progress.total_bytes.is_some()));
            bar.reset();
            bar.set_message(step.clone());
        }
        if let Some(total) = progress.total_bytes {
            bar.set_length(total);
            bar.set_position(progress.completed_bytes.unwrap_or(0).min(total));
        }
        self.last = step;
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Style of a bar with a length, or of a spinner.
fn style(has_length: bool) -> ProgressStyle {
    let template = if has_length {
        "{msg} {percent:>3}% {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{spinner} {msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Step of a pull for people: that of the model server, or the part that is pulled.
fn step(progress: &PullProgress) -> String {
    let Some(digest) = progress.digest.as_deref() else {
        return clean(&progress.status);
    };
    let digest = digest.rsplit(':').next().unwrap_or_default();
    let digest: String = digest.chars().take(SHOWN_DIGEST_CHARS).collect();
    format!("pulling {}", clean(&digest))
}

/// Size of the part that is pulled, in brackets.
fn size(progress: &PullProgress) -> String {
    let total = progress.total_bytes.map(print::size);
    total.map_or_else(String::new, |total| format!(" ({total})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(stream: &str) -> (Vec<String>, Result<PullEnd, Failure>) {
        let mut steps = Vec::new();
        let end = follow(stream.as_bytes(), |progress| {
            steps.push(step(progress) + &size(progress));
        });
        (steps, end)
    }

    #[test]
    fn events_lead_to_end() {
        let (steps, end) = followed(concat!(
            "event: progress\ndata: {\"status\":\"pulling manifest\"}\n\n",
            ": still here\n\n",
            "event: progress\ndata: {\"status\":\"x\",\"digest\":\"sha256:0123456789abcdef\",\"total_bytes\":2048}\n\n",
            "event: later\ndata: {}\n\n",
            "event: end\ndata: {\"status\":\"completed\"}\n\n",
        ));
        assert_eq!(
            steps,
            ["pulling manifest", "pulling 0123456789ab (2.0 KiB)"]
        );
        assert_eq!(end.unwrap().status, PullStatus::Completed);
    }

    #[test]
    fn broken_stream_is_failure() {
        let (_, end) = followed("event: progress\ndata: {\"status\":\"a\\u001b[2J\"}\n\n");
        let failure = end.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("continues"), "{}", failure.message);
        let (steps, _) = followed("event: progress\ndata: {\"status\":\"a\\u001b[2J\"}\n\n");
        assert_eq!(steps, ["a [2J"]);
        assert!(followed("event: end\ndata: nonsense\n\n").1.is_err());
    }
}
