//! Events in the log of a job: what the proxy decided about each of its requests, and how what was let through has ended.
//!
//! They go to the job's shim as [notes](crate::worker::notes). A decision is handed over before the client has its answer, so
//! that it stands in the log also where the job ends with that answer. The end of what was let through is reported as it
//! comes, unless the end of the job cuts it.
//!
//! **Secrets.** A job that has secrets could put one into a name that it asks for, and so into its log, where nothing masks
//! it. So its events have no reasons, and name only hosts that stand literally on its list: those were there before it.

use super::{activity::Activity, refusal::Refusal, request::Target, tally::Direction};
use crate::{
    api::{
        egress::{EgressPattern, EgressSpec, HostName},
        events::{EgressEvent, EgressVerdict, MAX_EGRESS_EVENTS},
    },
    worker::{ledger::Job, notes::NoteSender},
};
use bytes::Bytes;
use http::Uri;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Longest host that is reported, in bytes; no name is longer.
const MAX_HOST_BYTES: usize = 255;
/// Longest reason that is reported, in characters, so that an event fits into a note.
const MAX_DETAIL_CHARS: usize = 400;

/// Reporter of what happens to the requests of one job.
pub(super) struct Notices {
    notes: NoteSender,
    /// List of a job that has secrets.
    known: Option<Vec<EgressPattern>>,
    /// Events of this process. The shim, which outlives it, keeps no more than that either.
    reported: AtomicU64,
}

/// Host and port that a request asks for, as far as it names any.
#[derive(Clone)]
pub(super) struct Asked {
    host: Option<String>,
    port: Option<u16>,
}

impl Asked {
    /// What the URI of a request to the proxy asks for, whether it may be asked for or not.
    pub(super) fn of(uri: &Uri) -> Self {
        let default = match uri.scheme_str() {
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => None,
        };
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.map(|host| match host.parse::<HostName>() {
            Ok(name) => name.to_string(),
            Err(_) => host[..host.floor_char_boundary(MAX_HOST_BYTES)].to_owned(),
        });
        Self {
            host,
            port: uri.port_u16().or(default),
        }
    }

    /// Whether an entry of a list names it, and not a domain above it.
    fn is_named_in(&self, list: &[EgressPattern]) -> bool {
        let host = self.host.as_deref().map(str::parse::<HostName>);
        let (Some(Ok(host)), Some(port)) = (host, self.port) else {
            return false;
        };
        list.iter().any(|pattern| pattern.names(&host, port))
    }
}

impl From<&Target> for Asked {
    fn from(target: &Target) -> Self {
        Self {
            host: Some(target.host.to_string()),
            port: Some(target.port),
        }
    }
}

impl Notices {
    /// Reporter of a job with this list.
    pub(super) fn new(job: &Job, allowed: &EgressSpec) -> Self {
        let has_secrets = job.accepted.has_secrets;
        Self {
            notes: job.notes.sender(),
            known: has_secrets.then(|| allowed.allow.clone()),
            reported: AtomicU64::new(0),
        }
    }

    /// Reports that a request is let through.
    pub(super) async fn allowed(&self, target: &Target) {
        let event = self.event(EgressVerdict::Allowed, &Asked::from(target), None);
        self.hand_over(&event).await;
    }

    /// Reports that a request is refused, or, where no rule refuses it, that its host can't be reached.
    pub(super) async fn not_passed(&self, asked: &Asked, refusal: &Refusal) {
        let verdict = match refusal.is_by_rule {
            true => EgressVerdict::Refused,
            false => EgressVerdict::Ended,
        };
        let event = self.event(verdict, asked, Some(&refusal.detail));
        self.hand_over(&event).await;
    }

    /// Flow of bytes of a request that was let through.
    pub(super) fn flow(self: &Arc<Self>, target: &Target) -> Flow {
        Flow {
            notices: Arc::clone(self),
            asked: target.into(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            cut: OnceLock::new(),
            is_reported: AtomicBool::new(false),
        }
    }

    /// Event with what may be reported.
    fn event(&self, verdict: EgressVerdict, asked: &Asked, detail: Option<&str>) -> EgressEvent {
        let is_known = |list: &Vec<EgressPattern>| asked.is_named_in(list);
        let (host, port) = match self.known.as_ref().is_none_or(is_known) {
            true => (asked.host.clone(), asked.port),
            false => (None, None),
        };
        let detail = detail.filter(|_| self.known.is_none());
        EgressEvent {
            detail: detail.map(|detail| detail.chars().take(MAX_DETAIL_CHARS).collect()),
            ..EgressEvent::new(verdict, host, port)
        }
    }

    async fn hand_over(&self, event: &EgressEvent) {
        if let Some(note) = self.note(event) {
            self.notes.hand_over(note).await;
        }
    }

    /// Note of an event; `None` where there were as many as are reported.
    fn note(&self, event: &EgressEvent) -> Option<Bytes> {
        if self.reported.fetch_add(1, Ordering::Relaxed) >= MAX_EGRESS_EVENTS {
            return None;
        }
        serde_json::to_vec(event).ok().map(Bytes::from)
    }
}

/// Bytes of a tunnel or of an exchange, whose end is reported when it is dropped.
pub(super) struct Flow {
    notices: Arc<Notices>,
    asked: Asked,
    sent: AtomicU64,
    received: AtomicU64,
    /// Reason for which a rule has cut it.
    cut: OnceLock<String>,
    /// Whether its end is reported elsewhere.
    is_reported: AtomicBool,
}

impl Flow {
    fn end(&self) -> EgressEvent {
        let verdict = match self.cut.get() {
            Some(_) => EgressVerdict::Refused,
            None => EgressVerdict::Ended,
        };
        let detail = self.cut.get().map(String::as_str);
        EgressEvent {
            bytes_sent: Some(self.sent.load(Ordering::Relaxed)),
            bytes_received: Some(self.received.load(Ordering::Relaxed)),
            ..self.notices.event(verdict, &self.asked, detail)
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if *self.is_reported.get_mut() {
            return;
        }
        if let Some(note) = self.notices.note(&self.end()) {
            self.notices.notes.send(note);
        }
    }
}

impl Activity {
    /// Counts bytes of a flow.
    pub(super) fn count(&self, direction: Direction, bytes: usize) {
        if let Some(flow) = &self.flow {
            let counter = match direction {
                Direction::Sent => &flow.sent,
                Direction::Received => &flow.received,
            };
            counter.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Notes that a rule cuts the flow, and why. The first reason counts.
    pub(super) fn cut(&self, reason: &str) {
        if let Some(flow) = &self.flow {
            flow.cut.get_or_init(|| reason.to_owned());
        }
    }

    /// Notes that the end of the flow is reported elsewhere.
    pub(super) fn leave_end_to_others(&self) {
        if let Some(flow) = &self.flow {
            flow.is_reported.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
