//! What is told of requests: to all readers of a log, and of jobs with secrets.

use super::*;
use crate::{
    api::JobId,
    spool::Spool,
    worker::{egress::decision::MissingFrom, ledger::tests::accepted},
};

/// Job that may reach one host, and all below another.
struct Stage {
    job: Job,
    notices: Arc<Notices>,
}

impl Stage {
    fn new(has_secrets: bool) -> Self {
        let mut accepted = accepted(JobId::new(), 1);
        accepted.has_secrets = has_secrets;
        let job = Job::new(accepted, Spool::at("/nonexistent".into()), None);
        let allow =
            ["a.example", "*.b.example"].map(|entry| entry.parse::<EgressPattern>().unwrap());
        let allowed = EgressSpec {
            allow: allow.into(),
            ..EgressSpec::default()
        };
        let notices = Arc::new(Notices::new(&job, &allowed));
        Self { job, notices }
    }

    /// Events that were told.
    async fn told(&self) -> Vec<EgressEvent> {
        let mut notes = self.job.notes.receiver().await;
        let mut events = Vec::new();
        while let Ok(note) = notes.try_recv() {
            events.push(serde_json::from_slice(note.content()).unwrap());
        }
        events
    }
}

fn target(host: &str) -> Target {
    Target {
        host: host.parse().unwrap(),
        port: 443,
    }
}

fn uri(text: &str) -> Asked {
    Asked::of(&text.parse().unwrap())
}

#[test]
fn request_names_its_host_in_any_form() {
    for (text, host, port) in [
        ("http://A.Example/x", Some("a.example"), Some(80)),
        ("https://a.example:8443/", Some("a.example"), Some(8443)),
        ("a.example:443", Some("a.example"), Some(443)),
        ("http://user:secret@127.0.0.1/", Some("127.0.0.1"), Some(80)),
        ("[::1]:443", Some("[::1]"), Some(443)),
        ("/path", None, None),
    ] {
        let asked = uri(text);
        assert_eq!((asked.host.as_deref(), asked.port), (host, port), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn decisions_and_ends_are_told() {
    let stage = Stage::new(false);
    let (allowed, refused) = (target("a.example"), target("c.example"));
    stage.notices.allowed(&allowed).await;
    let refusal = Refusal::not_listed(&refused, MissingFrom::Job);
    let asked = Asked::from(&refused);
    stage.notices.not_passed(&asked, &refusal).await;
    let activity = Activity::of(stage.notices.flow(&allowed));
    activity.count(Direction::Sent, 3);
    activity.count(Direction::Received, 5);
    drop(activity);
    let activity = Activity::of(stage.notices.flow(&allowed));
    activity.cut("the limit");
    activity.cut("another reason");
    drop(activity);
    Activity::of(stage.notices.flow(&allowed)).leave_end_to_others();

    let event = |verdict, host: &str| EgressEvent::new(verdict, Some(host.to_owned()), Some(443));
    let expected = [
        event(EgressVerdict::Allowed, "a.example"),
        EgressEvent {
            detail: Some(refusal.detail),
            ..event(EgressVerdict::Refused, "c.example")
        },
        EgressEvent {
            bytes_sent: Some(3),
            bytes_received: Some(5),
            ..event(EgressVerdict::Ended, "a.example")
        },
        EgressEvent {
            detail: Some("the limit".to_owned()),
            bytes_sent: Some(0),
            bytes_received: Some(0),
            ..event(EgressVerdict::Refused, "a.example")
        },
    ];
    assert_eq!(stage.told().await, expected);
}

#[tokio::test(start_paused = true)]
async fn job_with_secrets_tells_only_what_its_list_says() {
    let stage = Stage::new(true);
    for host in ["a.example", "s3cr3t.b.example"] {
        stage.notices.allowed(&target(host)).await;
    }
    for text in ["http://s3cr3t.example:4711/", "a.example:4711", "/s3cr3t"] {
        let refusal = Refusal::not_listed(&target("s3cr3t.example"), MissingFrom::Job);
        stage.notices.not_passed(&uri(text), &refusal).await;
    }
    let hidden = |verdict| EgressEvent::new(verdict, None, None);
    let host = Some("a.example".to_owned());
    let expected = [
        EgressEvent::new(EgressVerdict::Allowed, host, Some(443)),
        hidden(EgressVerdict::Allowed),
        hidden(EgressVerdict::Refused),
        hidden(EgressVerdict::Refused),
        hidden(EgressVerdict::Refused),
    ];
    assert_eq!(stage.told().await, expected);
}

#[tokio::test(start_paused = true)]
async fn longest_event_fits_and_the_number_is_limited() {
    let stage = Stage::new(false);
    let refusal = Refusal::literal("127.0.0.1".parse().unwrap());
    let refusal = Refusal {
        detail: "\u{1F600}".repeat(1000),
        ..refusal
    };
    let long = uri(&format!("http://{}/", "x".repeat(5000)));
    let event = stage
        .notices
        .event(EgressVerdict::Refused, &long, Some(&refusal.detail));
    assert!(stage.notices.note(&event).unwrap().len() < 4096);
    for _ in 0..MAX_EGRESS_EVENTS + 10 {
        drop(stage.notices.flow(&target("a.example")));
    }
    let told = stage.told().await.len() as u64;
    assert_eq!(told, MAX_EGRESS_EVENTS - 1, "one was made and not sent");
}
