//! What a service manager that started us hears: `Type=notify` of systemd.service(5). Without one,
//! nothing is said.

use sd_notify::NotifyState;

/// The role has started; `state` is what `systemctl status` shows from now on.
pub(super) fn notify_ready(state: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(state)]);
}

/// What `systemctl status` shows from now on.
pub(super) fn notify_status(state: &str) {
    send(&[NotifyState::Status(state)]);
}

/// It was told to end, and is about to.
pub(super) fn notify_stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told; it may take this start for hung, see NOTIFY_SOCKET");
    }
}
