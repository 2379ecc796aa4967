//! Removal of a container whose exit is known. Podman takes some 50 ms for it, while the result is on its way.

use super::lifecycle::{Action, ENGINE_KILL_TIMEOUT, Event, Lifecycle, Phase, Step};
use crate::{
    background,
    engine::{ClientEnd, Container, Engine},
};
use std::{future::pending, time::Instant};
use tokio::time::sleep_until;

/// A container whose exit is known, and which podman still has to remove.
pub(crate) struct ContainerCleanup {
    pub(super) engine: Engine,
    pub(super) container: Container,
    pub(super) name: String,
    pub(super) life: Lifecycle,
    pub(super) is_oom_killed: bool,
}

impl ContainerCleanup {
    /// Takes an event now.
    pub(super) fn step(&mut self, event: Event) -> Action {
        let before = self.life.client();
        let (life, action) = self.life.on(event, Instant::now());
        self.life = life;
        if before.is_none() && life.client() == Some(ClientEnd::Killed) {
            tracing::warn!(container = self.name, "podman client was killed");
        }
        action
    }

    /// Asks podman in the background to kill what init could not.
    pub(super) fn kill(&self) {
        tracing::warn!(
            container = self.name,
            "init does not end the sandbox; podman kills it"
        );
        let (engine, name) = (self.engine.clone(), self.name.clone());
        background::spawn("sandbox-kill", async move {
            let killed = engine.kill_container(&name, ENGINE_KILL_TIMEOUT);
            if let Err(error) = killed.await {
                tracing::warn!(%error, container = name, "podman could not kill a sandbox");
            }
        });
    }

    /// Whether the kernel killed a process of the sandbox for want of memory.
    pub(crate) fn is_oom_killed(&self) -> bool {
        self.is_oom_killed
    }

    /// Waits until podman has removed the container, and removes it where podman doesn't by itself. False where
    /// something is left of it.
    pub(crate) async fn wait_until_removed(&mut self) -> bool {
        let mut action = self.step(Event::RemovalAwaited);
        if self.life.phase() == Phase::Ending(Step::EngineRemoves) {
            let event = self.engine_removes().await;
            action = self.step(event);
        }
        while action == Action::RemoveContainer {
            let is_removed = self.engine.remove_container(&self.name).await;
            action = self.step(Event::Removed(is_removed));
        }
        self.life.phase() == Phase::Cleared
    }

    /// Waits until podman has removed the container by itself, until the deadline.
    async fn engine_removes(&mut self) -> Event {
        tokio::select! {
            is_removed = self.container.wait_removed() => Event::Removed(is_removed),
            () = reached(self.life.deadline()) => {
                self.container.terminate().await;
                Event::DeadlinePassed
            }
        }
    }
}

/// Waits for a time, for ever where there is none.
pub(super) async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
