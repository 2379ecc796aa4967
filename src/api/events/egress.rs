//! Events of the proxy through which a job reaches hosts: what was decided about a request, and how what was let through
//! has ended.
//!
//! Only jobs with a list of hosts have such events, and only orchestrators that know them send such jobs. So no release
//! without them ever reads one, from a node or from a disk.

use crate::api::string_form::named_enum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most events of the proxy in the log of one job. Further decisions show in the sums of the result alone.
pub const MAX_EGRESS_EVENTS: u64 = 1000;
/// Detail of the last of them.
const LAST_DETAIL: &str =
    "this is the last event of the proxy that is kept; further requests are only counted";

named_enum! {
    /// What happened to a request to the proxy.
    pub enum EgressVerdict {
        /// It was let through.
        Allowed,
        /// A rule refused it, or cut what was let through at first.
        Refused,
        /// What was let through has ended, or its host could not be reached.
        Ended,
    }
}

/// Event of the proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EgressEvent {
    /// Host that the job asked for, in normal form where it is a name. Absent where the request named none, and where a job
    /// with secrets could have put one into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What happened.
    pub verdict: EgressVerdict,
    /// Reason in a sentence; absent for a job with secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Bytes that the job has sent, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes that the job has received, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
}

impl EgressEvent {
    /// Event of a verdict about a host and a port, as far as these are known.
    pub fn new(verdict: EgressVerdict, host: Option<String>, port: Option<u16>) -> Self {
        Self {
            host,
            port,
            verdict,
            detail: None,
            bytes_sent: None,
            bytes_received: None,
        }
    }

    /// Says that no event follows this one.
    pub fn mark_last(&mut self) {
        self.detail = Some(match self.detail.take() {
            Some(detail) => format!("{detail}; {LAST_DETAIL}"),
            None => LAST_DETAIL.to_owned(),
        });
    }
}

impl fmt::Display for EgressEvent {
    /// Writes whom the event is about, and what happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Some(host), Some(port)) => write!(f, "{host}:{port}")?,
            (Some(host), None) => f.write_str(host)?,
            (None, _) => f.write_str("a request")?,
        }
        write!(f, " {}", self.verdict.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        events::{JobEvent, LogRecord, OutputEncoding, RecordContent},
        time::Time,
    };
    use serde_json::json;

    #[test]
    fn event_has_only_what_is_known() {
        let host = Some("a.example".to_owned());
        let mut event = EgressEvent::new(EgressVerdict::Allowed, host, Some(443));
        assert_eq!(event.to_string(), "a.example:443 allowed");
        let json = json!({"host": "a.example", "port": 443, "verdict": "allowed"});
        assert_eq!(serde_json::to_value(&event).unwrap(), json);
        assert_eq!(serde_json::from_value::<EgressEvent>(json).unwrap(), event);
        event.mark_last();
        assert_eq!(event.detail.as_deref(), Some(LAST_DETAIL));
        let unnamed = EgressEvent::new(EgressVerdict::Refused, None, None);
        assert_eq!(unnamed.to_string(), "a request refused");
    }

    #[test]
    fn fields_stand_beside_those_of_all_events() {
        let mut event = EgressEvent::new(EgressVerdict::Ended, None, None);
        event.bytes_received = Some(u64::MAX);
        let record = LogRecord {
            seq: 7,
            time: Some(Time::from_millis(0)),
            content: RecordContent::Egress(event.clone()),
        };
        let line = serde_json::to_value(record.into_event(2, OutputEncoding::Text)).unwrap();
        let expected = json!({
            "event": "egress", "attempt": 2, "seq": 7, "time": "1970-01-01T00:00:00.000Z",
            "verdict": "ended", "bytes_received": u64::MAX,
        });
        assert_eq!(line, expected);
        match serde_json::from_value(line).unwrap() {
            JobEvent::Egress { egress, .. } => assert_eq!(egress, event),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reason_stays_in_last_event() {
        let mut event = EgressEvent::new(EgressVerdict::Refused, None, None);
        event.detail = Some("not listed".to_owned());
        event.mark_last();
        let detail = event.detail.unwrap();
        assert!(
            detail.starts_with("not listed; this is the last event"),
            "{detail}"
        );
    }
}
