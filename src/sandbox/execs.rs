//! Execs beside the first command of a sandbox, or in one that stays: the way to start and reach them.
//!
//! The supervisor alone speaks with init. It passes requests that come through an [`ExecPort`] on, and gives each exec the
//! reports about it; it never waits for an exec. Output doesn't pass it: an exec has pipes of its own.

use super::outbox::MAX_DESCRIPTORS;
use crate::sandbox_init::wire::{ExecNumber, ExecSpec, InitRequest, Report};
use parking_lot::Mutex;
use std::{collections::HashMap, io, os::fd::OwnedFd, sync::Arc};
use tokio::sync::mpsc;

/// Request about an exec, on its way to the supervisor.
pub(super) struct ExecRequest {
    pub(super) message: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Receivers of reports, by the number of their exec.
struct Routes {
    last: u32,
    by_number: HashMap<u32, mpsc::UnboundedSender<Report>>,
    /// Whether the sandbox has ended.
    is_closed: bool,
}

/// Door to the execs of a sandbox.
#[derive(Clone)]
pub(crate) struct ExecPort {
    requests: mpsc::UnboundedSender<ExecRequest>,
    routes: Arc<Mutex<Routes>>,
}

/// An exec, until it has ended.
pub(crate) struct ExecHandle {
    number: ExecNumber,
    port: ExecPort,
    reports: mpsc::UnboundedReceiver<Report>,
}

/// Sender of requests about an exec.
#[derive(Clone)]
pub(crate) struct ExecControl {
    number: ExecNumber,
    requests: mpsc::UnboundedSender<ExecRequest>,
}

impl ExecPort {
    /// New door, and the supervisor's end of it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<ExecRequest>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let routes = Routes {
            last: ExecNumber::FIRST.0,
            by_number: HashMap::new(),
            is_closed: false,
        };
        let port = Self {
            requests,
            routes: Arc::new(routes.into()),
        };
        (port, receiver)
    }

    /// Has init start an exec with these descriptors. Fails where the sandbox has ended. It begins once the sandbox is in
    /// use.
    pub(crate) fn start(
        &self,
        spec: &ExecSpec,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<ExecHandle> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (sender, reports) = mpsc::unbounded_channel();
        let number = {
            let mut routes = self.routes.lock();
            if routes.is_closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            routes.last = routes
                .last
                .checked_add(1)
                .ok_or(io::ErrorKind::StorageFull)?;
            let number = routes.last;
            routes.by_number.insert(number, sender);
            ExecNumber(number)
        };
        let message = spec.encode(number);
        let request = ExecRequest {
            message,
            descriptors,
        };
        // Without a supervisor the route is closed, or about to be.
        let _ = self.requests.send(request);
        Ok(ExecHandle {
            number,
            port: self.clone(),
            reports,
        })
    }

    /// Gives an exec a report about it; false where none was ever started under this number.
    pub(super) fn deliver(&self, number: ExecNumber, report: Report) -> bool {
        let routes = self.routes.lock();
        if let Some(route) = routes.by_number.get(&number.0) {
            // A receiver that has left wants no more reports.
            let _ = route.send(report);
        }
        (ExecNumber::FIRST.0 + 1..=routes.last).contains(&number.0)
    }

    /// Ends all execs: no report follows.
    pub(super) fn close(&self) {
        let mut routes = self.routes.lock();
        routes.is_closed = true;
        routes.by_number.clear();
    }
}

impl ExecHandle {
    /// Next report about the exec; `None` once the sandbox has ended. Cancel-safe.
    pub(crate) async fn next_report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    pub(crate) fn control(&self) -> ExecControl {
        ExecControl {
            number: self.number,
            requests: self.port.requests.clone(),
        }
    }
}

impl Drop for ExecHandle {
    fn drop(&mut self) {
        self.port.routes.lock().by_number.remove(&self.number.0);
    }
}

impl ExecControl {
    /// Sends a request about the exec; one that comes after its end has no effect.
    pub(crate) fn send(&self, request: &InitRequest) {
        let request = ExecRequest {
            message: request.encode(self.number),
            descriptors: Vec::new(),
        };
        // Without a supervisor the sandbox has ended, and the exec with it.
        let _ = self.requests.send(request);
    }
}
