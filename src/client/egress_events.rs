//! Events of the proxy of a job, for people.

use super::{
    follow::parse,
    print::{clean, size},
};
use crate::{
    api::{
        events::{EgressEvent, EgressVerdict},
        time::Time,
    },
    exit::Failure,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fields {
    #[serde(flatten)]
    event: EgressEvent,
    #[serde(default)]
    time: Option<Time>,
}

/// Event as a line, which begins with its time if asked to.
pub(super) fn egress_line(data: &str, timestamps: bool) -> Result<String, Failure> {
    let Fields { event, time } = parse(data)?;
    let time = time.filter(|_| timestamps);
    let time = time.map(|time| format!("{time} ")).unwrap_or_default();
    Ok(format!("{time}egress  {}", describe(&event)))
}

/// What happened, such as `a.example:443 ended, 1.2 KiB sent, 34.0 KiB received`.
fn describe(event: &EgressEvent) -> String {
    let mut text = event.to_string();
    if let Some(sent) = event.bytes_sent {
        text.push_str(&format!(", {} sent", size(sent)));
    }
    if let Some(received) = event.bytes_received {
        text.push_str(&format!(", {} received", size(received)));
    }
    if let Some(detail) = &event.detail {
        let separator = match event.verdict {
            EgressVerdict::Allowed => "; ",
            EgressVerdict::Refused | EgressVerdict::Ended => ": ",
        };
        text.push_str(separator);
        text.push_str(detail);
    } else if event.verdict == EgressVerdict::Refused {
        text.push_str(" (the program got the reason; it is not kept, since the job has secrets)");
    }
    clean(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line() {
        let host = || Some("a.example".to_owned());
        let event = |verdict| EgressEvent::new(verdict, host(), Some(443));
        let allowed = describe(&event(EgressVerdict::Allowed));
        assert_eq!(allowed, "a.example:443 allowed");
        let refused = describe(&EgressEvent {
            detail: Some("not\nlisted".to_owned()),
            ..event(EgressVerdict::Refused)
        });
        assert!(
            refused.starts_with("a.example:443 refused: not"),
            "{refused}"
        );
        assert!(!refused.contains('\n'), "{refused}");
        let ended = describe(&EgressEvent {
            bytes_sent: Some(1229),
            bytes_received: Some(34 << 10),
            ..event(EgressVerdict::Ended)
        });
        assert_eq!(
            ended,
            "a.example:443 ended, 1.2 KiB sent, 34.0 KiB received"
        );
    }
}
