//! Life of a sandbox as a pure state machine: events and a time in, the next state and one action out.
//!
//! ```text
//!            InitReady     Assigned, ExecSent           ExecEnded, ClientGone
//! Starting ───────────▶ Ready ──────────────▶ InUse ──────────────────────────▶ Ending ────────▶ Cleared
//!     │                   │                     │  StopRequested, time limit       ▲    Removed
//!     └───────────────────┴─────────────────────┴──────────────────────────────────┘
//! ```
//!
//! A sandbox may be `Ready` for as long as its owner likes, before it has a command. Every other phase but `Cleared` has a
//! deadline, so that no silence of podman or init holds a sandbox for ever:
//!
//! | phase | deadline | what happens at it |
//! |---|---|---|
//! | `Starting`; from `Assigned` until the command runs | [`START_TIMEOUT`] | the podman client is ended |
//! | `InUse` | the command's time limit | the sandbox is stopped, as on request |
//! | `Ending`, the command ends | its grace | init kills all processes |
//! | `Ending`, init kills | [`INIT_KILL_TIMEOUT`] | podman is asked to kill the container |
//! | `Ending`, podman kills | [`ENGINE_KILL_TIMEOUT`] | the podman client is ended |
//! | `Ending`, podman removes | [`REMOVAL_TIMEOUT`], from when it is waited for | the container is removed by its name |
//!
//! A command that runs is sent TERM when it is stopped, and has its grace to end; without a grace, and before it runs,
//! all is killed at once. A later request can only shorten the grace.
//!
//! A command is handed over at most once, and never after a stop was requested. From [`Event::ExecSent`] on it may
//! have run: an end that init doesn't report is [`SandboxExit::Lost`] then, and a failed start before.

mod types;

pub(crate) use types::ExecLimits;
pub(super) use types::{Action, Event, LastWords, Phase, Step};

use super::{
    exit::{SandboxExit, classify_exit},
    stop::{StopReason, StopRequest},
};
use crate::engine::ClientEnd;
use std::time::{Duration, Instant};

/// Time for podman and init until the command runs.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for init to kill all processes of the sandbox.
pub(super) const INIT_KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for podman to kill a container that init did not end.
pub(super) const ENGINE_KILL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for podman to remove the container of a sandbox that has ended.
pub(super) const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// State of a sandbox's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lifecycle {
    phase: Phase,
    /// None while the sandbox waits for a command.
    deadline: Option<Instant>,
    /// Limits of the command that was assigned to it.
    limits: Option<ExecLimits>,
    has_exec: bool,
    is_running: bool,
    is_signaled: bool,
    /// How the podman client has ended.
    client: Option<ClientEnd>,
    stop: Option<StopReason>,
}

impl Lifecycle {
    /// Life of a sandbox whose container is being made from `now` on.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Starting,
            deadline: Some(now + START_TIMEOUT),
            limits: None,
            has_exec: false,
            is_running: false,
            is_signaled: false,
            client: None,
            stop: None,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Time at which `DeadlinePassed` is due; `None` while the sandbox may wait for ever.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether init has reported that the command runs.
    pub(super) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Whether a request to stop would still change something.
    pub(super) fn is_stoppable(&self) -> bool {
        matches!(
            self.phase,
            Phase::Starting | Phase::Ready | Phase::InUse | Phase::Ending(Step::CommandEnds)
        )
    }

    /// Whether the exit has not been determined yet.
    fn is_open(&self) -> bool {
        self.is_stoppable()
            || matches!(
                self.phase,
                Phase::Ending(Step::InitKills | Step::EngineKills)
            )
    }

    /// How the podman client has ended; `None` while it runs.
    pub(super) fn client(&self) -> Option<ClientEnd> {
        self.client
    }

    /// Takes an event at a time; what is impossible in a phase changes nothing.
    pub(super) fn on(mut self, event: Event, now: Instant) -> (Self, Action) {
        let action = match event {
            Event::Removed(is_removed) => self.removed(is_removed),
            Event::DeadlinePassed => self.deadline_passed(now),
            Event::RemovalAwaited => self.removal_awaited(now),
            _ if !self.is_open() => Action::Wait,
            Event::InitReady => self.init_ready(),
            Event::Assigned(limits) => self.assigned(limits, now),
            Event::ExecSent => self.exec_sent(),
            Event::ExecRefused(exit) => Action::EndClient(self.end(exit, now)),
            // Init ends by itself.
            Event::InitRefused(exit) => Action::Exit(self.end(exit, now)),
            Event::ExecStarted => self.exec_started(now),
            Event::ExecSignaled => {
                self.is_signaled |= self.stop.is_some();
                Action::Wait
            }
            Event::ExecEnded(end) => {
                let exit = classify_exit(end, self.stop, self.is_signaled);
                Action::Exit(self.end(exit, now))
            }
            Event::ReportsClosed if self.client.is_some() => Action::CollectLastWords,
            Event::ReportsClosed => Action::Wait,
            Event::ClientExited { end, is_reporting } => self.client_exited(end, is_reporting),
            Event::ClientGone(words) => {
                let exit = self.exit_of(words);
                Action::Exit(self.end(exit, now))
            }
            Event::StopRequested(request) => self.stop(request, now),
        };
        (self, action)
    }

    fn init_ready(&mut self) -> Action {
        match self.phase {
            Phase::Starting => {
                self.phase = Phase::Ready;
                self.deadline = None;
                Action::BecomeReady
            }
            Phase::Ending(_) if !self.has_exec => Action::SendKill,
            _ => Action::Wait,
        }
    }

    fn assigned(&mut self, limits: ExecLimits, now: Instant) -> Action {
        if self.phase != Phase::Ready || self.limits.is_some() {
            return Action::Wait;
        }
        self.limits = Some(limits);
        self.deadline = Some(now + START_TIMEOUT);
        Action::SendExec
    }

    fn exec_sent(&mut self) -> Action {
        if self.phase == Phase::Ready && self.limits.is_some() {
            self.phase = Phase::InUse;
            self.has_exec = true;
        }
        Action::Wait
    }

    fn exec_started(&mut self, now: Instant) -> Action {
        if self.has_exec && !self.is_running {
            self.is_running = true;
            if let (Phase::InUse, Some(limits)) = (self.phase, self.limits) {
                self.deadline = Some(now + limits.timeout);
            }
        }
        Action::Wait
    }

    fn stop(&mut self, request: StopRequest, now: Instant) -> Action {
        let grace = self.limits.map_or(Duration::ZERO, |limits| limits.grace);
        let grace = grace.min(request.max_grace);
        match self.phase {
            Phase::Ending(Step::CommandEnds) => {
                let shorter = now + grace;
                self.deadline = self.deadline.map(|deadline| deadline.min(shorter));
                return if grace.is_zero() {
                    self.kill_all(now)
                } else {
                    Action::Wait
                };
            }
            _ if !self.is_stoppable() => return Action::Wait,
            _ => {}
        }
        self.stop = Some(request.reason);
        if self.is_running && !grace.is_zero() {
            self.phase = Phase::Ending(Step::CommandEnds);
            self.deadline = Some(now + grace);
            return Action::SendTerm;
        }
        self.kill_all(now)
    }

    fn kill_all(&mut self, now: Instant) -> Action {
        // Without init there is nothing to kill yet: `init_ready` sends the kill.
        let is_init_there = self.phase != Phase::Starting;
        self.phase = Phase::Ending(Step::InitKills);
        self.deadline = Some(now + INIT_KILL_TIMEOUT);
        if is_init_there {
            Action::SendKill
        } else {
            Action::Wait
        }
    }

    fn client_exited(&mut self, end: ClientEnd, is_reporting: bool) -> Action {
        self.client = Some(end);
        // A container outlives its podman client, and so does what init reports.
        let goes_on = match end {
            ClientEnd::Detached => true,
            ClientEnd::Killed => self.has_exec,
            ClientEnd::Failed => false,
        };
        if goes_on && is_reporting {
            Action::Wait
        } else {
            Action::CollectLastWords
        }
    }

    fn deadline_passed(&mut self, now: Instant) -> Action {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Action::Wait;
        }
        match (self.phase, self.stop) {
            (Phase::InUse, _) if self.is_running => {
                self.stop(StopRequest::new(StopReason::Timeout), now)
            }
            (Phase::Ending(Step::CommandEnds), _) => self.kill_all(now),
            (Phase::Starting | Phase::Ready | Phase::InUse, _) => {
                let exit = self.unreported(slow_start());
                Action::EndClient(self.end(exit, now))
            }
            (Phase::Ending(Step::InitKills), _) if self.has_exec => {
                self.phase = Phase::Ending(Step::EngineKills);
                self.deadline = Some(now + ENGINE_KILL_TIMEOUT);
                Action::KillContainer
            }
            // Without a command nothing runs that podman could kill: it is podman that hangs.
            (Phase::Ending(Step::InitKills | Step::EngineKills), Some(reason)) => {
                Action::EndClient(self.end(SandboxExit::Stopped(reason), now))
            }
            (Phase::Ending(Step::EngineRemoves), _) => self.force_removal(),
            (Phase::Ending(_) | Phase::Cleared, _) => Action::Wait,
        }
    }

    fn removal_awaited(&mut self, now: Instant) -> Action {
        match self.phase {
            Phase::Ending(Step::EngineRemoves) => {
                // A result that was slow to write takes nothing of podman's time.
                self.deadline = Some(now + REMOVAL_TIMEOUT);
                Action::Wait
            }
            // The removal by name has failed, or was cut off.
            Phase::Ending(Step::ForcedRemoval) => self.force_removal(),
            _ => Action::Wait,
        }
    }

    fn removed(&mut self, is_removed: bool) -> Action {
        match self.phase {
            Phase::Ending(Step::EngineRemoves | Step::ForcedRemoval) if is_removed => {
                self.phase = Phase::Cleared;
                Action::Wait
            }
            Phase::Ending(Step::EngineRemoves) => self.force_removal(),
            _ => Action::Wait,
        }
    }

    fn force_removal(&mut self) -> Action {
        self.phase = Phase::Ending(Step::ForcedRemoval);
        Action::RemoveContainer
    }

    /// Enters the removal of the container; the exit is passed through.
    fn end(&mut self, exit: SandboxExit, now: Instant) -> SandboxExit {
        self.phase = Phase::Ending(Step::EngineRemoves);
        self.deadline = Some(now + REMOVAL_TIMEOUT);
        exit
    }

    /// Exit of a sandbox without client and init.
    fn exit_of(&self, words: LastWords) -> SandboxExit {
        match (words.report, self.stop) {
            (Some(end), stop) => classify_exit(end, stop, self.is_signaled),
            (None, Some(reason)) => SandboxExit::Stopped(reason),
            // Init was killed, and the command with it: by the kernel, for memory that the command took, or on
            // purpose. A command that can bring that about must not be run again for it.
            (None, None)
                if (self.is_running || words.has_started)
                    && self.client == Some(ClientEnd::Detached) =>
            {
                SandboxExit::Signaled(libc::SIGKILL)
            }
            (None, None) => match words.message {
                // A client that was killed has refused nothing.
                Some(message) if !self.has_exec && self.client == Some(ClientEnd::Failed) => {
                    SandboxExit::Refused(message)
                }
                message => self.unreported(message.unwrap_or_else(|| {
                    "the sandbox ended, and its init reported no exit".to_owned()
                })),
            },
        }
    }

    /// Exit without a report: a failed start as long as the command can't have run.
    fn unreported(&self, message: String) -> SandboxExit {
        if self.has_exec {
            SandboxExit::Lost(message)
        } else {
            SandboxExit::EngineFailed(message)
        }
    }
}

fn slow_start() -> String {
    let seconds = START_TIMEOUT.as_secs();
    format!(
        "the sandbox did not start within {seconds} s; see what holds podman up with: ps -C podman -o pid,stat,etime,args"
    )
}

#[cfg(test)]
mod tests;
