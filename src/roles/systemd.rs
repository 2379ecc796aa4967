//! Notifications for the service manager: `Type=notify` of systemd.service(5). Without one they go nowhere.

use sd_notify::NotifyState;

/// Notifies that the role has started; `state` is its status in `systemctl status`.
pub(super) fn notify_ready(state: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(state)]);
}

/// Notifies of a new status for `systemctl status`.
pub(super) fn notify_status(state: &str) {
    send(&[NotifyState::Status(state)]);
}

/// Notifies that the role stops.
pub(super) fn notify_stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "service manager could not be notified; it may treat this start as hung; check NOTIFY_SOCKET");
    }
}
