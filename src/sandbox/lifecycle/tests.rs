//! The lifecycle: every state and event, and random sequences of events.

use super::*;
use crate::sandbox_init::wire::ExecEnd;
use proptest::prelude::*;

const LIMITS: ExecLimits = ExecLimits {
    timeout: Duration::from_secs(3600),
    grace: Duration::from_secs(5),
};

fn cancel() -> StopRequest {
    StopRequest::new(StopReason::Canceled)
}

fn force() -> StopRequest {
    StopRequest::within(StopReason::Canceled, Duration::ZERO)
}

fn exited(end: ClientEnd, is_reporting: bool) -> Event {
    Event::ClientExited { end, is_reporting }
}

/// Every kind of event, with one value for each field that the machine only passes on.
fn alphabet() -> Vec<Event> {
    let words = |report| LastWords {
        report,
        has_started: false,
        message: Some("podman: no".to_owned()),
    };
    vec![
        Event::InitReady,
        Event::Assigned(LIMITS),
        Event::ExecSent,
        Event::ExecRefused(SandboxExit::ImageNotRunnable("no".to_owned())),
        Event::ExecStarted,
        Event::ExecSignaled,
        Event::ExecEnded(ExecEnd::Exited(0)),
        Event::ExecEnded(ExecEnd::Killed(libc::SIGKILL)),
        Event::InitRefused(SandboxExit::EngineFailed("no".to_owned())),
        Event::ReportsClosed,
        exited(ClientEnd::Detached, true),
        exited(ClientEnd::Detached, false),
        exited(ClientEnd::Killed, true),
        exited(ClientEnd::Failed, true),
        Event::ClientGone(words(None)),
        Event::ClientGone(words(Some(ExecEnd::Exited(3)))),
        Event::StopRequested(cancel()),
        Event::StopRequested(force()),
        Event::StopRequested(StopRequest::new(StopReason::Shutdown)),
        Event::DeadlinePassed,
        Event::RemovalAwaited,
        Event::Removed(true),
        Event::Removed(false),
    ]
}

/// A run of the machine that checks its invariants at every step.
struct Run {
    life: Lifecycle,
    now: Instant,
    is_exec_offered: bool,
    is_exec_sent: bool,
    exit: Option<SandboxExit>,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            life: Lifecycle::new(now),
            now,
            is_exec_offered: false,
            is_exec_sent: false,
            exit: None,
        }
    }

    /// Takes an event, a deadline at its time.
    fn step(&mut self, event: Event) -> Action {
        if event == Event::DeadlinePassed {
            self.now = self.life.deadline().unwrap_or(self.now).max(self.now);
        }
        let before = self.life;
        let (life, action) = before.on(event.clone(), self.now);
        self.check(&before, &life, &event, &action);
        self.life = life;
        action
    }

    fn check(&mut self, before: &Lifecycle, after: &Lifecycle, event: &Event, action: &Action) {
        let context = format!("{before:?} on {event:?} → {after:?}, {action:?}");
        assert!(rank(after.phase) >= rank(before.phase), "{context}");
        assert!(
            before.stop.is_none() || after.stop == before.stop,
            "{context}"
        );
        match action {
            Action::SendExec => {
                assert!(!self.is_exec_offered && before.stop.is_none(), "{context}");
                assert_eq!(*event, Event::Assigned(LIMITS), "{context}");
                self.is_exec_offered = true;
            }
            Action::Exit(exit) | Action::EndClient(exit) => {
                assert_eq!(self.exit.replace(exit.clone()), None, "{context}");
                self.check_exit(exit, after, &context);
            }
            Action::KillContainer => assert!(after.stop.is_some() && after.has_exec, "{context}"),
            Action::RemoveContainer => assert!(self.exit.is_some(), "{context}"),
            Action::SendTerm => {
                assert!(before.stop.is_none() && after.is_running, "{context}");
                let end = self.now + LIMITS.grace;
                assert_eq!(after.deadline, Some(end), "{context}");
            }
            Action::BecomeReady => assert!(after.deadline.is_none(), "{context}"),
            Action::Wait | Action::SendKill | Action::CollectLastWords => {}
        }
        let is_assigned = before.phase == Phase::Ready && before.limits.is_some();
        if *event == Event::ExecSent && is_assigned {
            self.is_exec_sent = true;
        }
        let is_ending = |life: &Lifecycle| life.phase == Phase::Ending(Step::CommandEnds);
        if is_ending(before) && is_ending(after) {
            assert!(after.deadline <= before.deadline, "{context}");
        }
        assert_eq!(after.has_exec, self.is_exec_sent, "{context}");
        assert!(!after.is_running || after.has_exec, "{context}");
    }

    /// A lost exit implies that the command may have run; a refused one, that it has not.
    fn check_exit(&self, exit: &SandboxExit, life: &Lifecycle, context: &str) {
        match exit {
            SandboxExit::Lost(_) => assert!(life.has_exec, "{context}"),
            SandboxExit::Refused(_) => assert!(!life.has_exec && life.stop.is_none(), "{context}"),
            SandboxExit::Stopped(reason) => assert_eq!(life.stop, Some(*reason), "{context}"),
            _ => {}
        }
    }
}

fn rank(phase: Phase) -> usize {
    match phase {
        Phase::Starting => 0,
        Phase::Ready => 1,
        Phase::InUse => 2,
        Phase::Ending(Step::CommandEnds) => 3,
        Phase::Ending(Step::InitKills) => 4,
        Phase::Ending(Step::EngineKills) => 5,
        Phase::Ending(Step::EngineRemoves) => 6,
        Phase::Ending(Step::ForcedRemoval) => 7,
        Phase::Cleared => 8,
    }
}

#[test]
fn every_short_sequence_keeps_invariants() {
    let alphabet = alphabet();
    let depth = 4;
    for number in 0..alphabet.len().pow(depth) {
        let mut run = Run::new();
        let mut rest = number;
        for _ in 0..depth {
            run.step(alphabet[rest % alphabet.len()].clone());
            rest /= alphabet.len();
        }
    }
}

proptest! {
    #[test]
    fn random_long_sequences_keep_invariants(
        events in proptest::collection::vec(proptest::sample::select(alphabet()), 0..40),
    ) {
        let mut run = Run::new();
        for event in events {
            run.step(event);
        }
    }

    #[test]
    fn every_sandbox_ends_when_events_stop(
        events in proptest::collection::vec(proptest::sample::select(alphabet()), 0..20),
    ) {
        let mut run = Run::new();
        for event in events {
            run.step(event);
        }
        // A sandbox that waits for a command does so until it is stopped.
        run.step(Event::StopRequested(cancel()));
        // Grace, init's kill, podman's kill, removal.
        for _ in 0..4 {
            run.step(Event::DeadlinePassed);
        }
        prop_assert!(run.exit.is_some());
        run.step(Event::Removed(true));
        prop_assert_eq!(run.life.phase, Phase::Cleared);
    }
}

#[test]
fn command_runs_and_is_cleaned_up() {
    let mut run = Run::new();
    assert_eq!(run.step(Event::InitReady), Action::BecomeReady);
    assert_eq!(run.life.deadline(), None);
    assert_eq!(run.step(Event::DeadlinePassed), Action::Wait);
    assert_eq!(run.step(Event::Assigned(LIMITS)), Action::SendExec);
    run.step(Event::ExecSent);
    assert_eq!(run.life.deadline(), Some(run.now + START_TIMEOUT));
    run.step(Event::ExecStarted);
    assert_eq!(run.life.deadline(), Some(run.now + LIMITS.timeout));
    let end = run.step(Event::ExecEnded(ExecEnd::Exited(7)));
    assert_eq!(end, Action::Exit(SandboxExit::Exited(7)));
    assert_eq!(run.step(Event::Removed(true)), Action::Wait);
    assert_eq!(run.life.phase(), Phase::Cleared);
}

/// A run whose command runs.
fn running() -> Run {
    let mut run = Run::new();
    assign(&mut run);
    run.step(Event::ExecStarted);
    run
}

/// Brings a new sandbox to where its command was handed over.
fn assign(run: &mut Run) {
    for event in [Event::InitReady, Event::Assigned(LIMITS), Event::ExecSent] {
        run.step(event);
    }
}

#[test]
fn time_limit_escalates_from_term_to_podman() {
    let mut run = running();
    let stopped = SandboxExit::Stopped(StopReason::Timeout);
    let expected = [
        Action::SendTerm,
        Action::SendKill,
        Action::KillContainer,
        Action::EndClient(stopped),
        Action::RemoveContainer,
    ];
    assert_eq!([(); 5].map(|()| run.step(Event::DeadlinePassed)), expected);
}

#[test]
fn end_after_term_counts_as_stopped() {
    for end in [
        ExecEnd::Exited(0),
        ExecEnd::Exited(3),
        ExecEnd::Killed(libc::SIGTERM),
        ExecEnd::Killed(libc::SIGKILL),
    ] {
        let mut run = running();
        assert_eq!(run.step(Event::StopRequested(cancel())), Action::SendTerm);
        run.step(Event::ExecSignaled);
        let stopped = SandboxExit::Stopped(StopReason::Canceled);
        assert_eq!(run.step(Event::ExecEnded(end)), Action::Exit(stopped));
    }
}

#[test]
fn end_before_term_counts_as_own() {
    let mut run = running();
    run.step(Event::StopRequested(cancel()));
    let end = run.step(Event::ExecEnded(ExecEnd::Exited(3)));
    assert_eq!(end, Action::Exit(SandboxExit::Exited(3)));
}

#[test]
fn second_stop_without_grace_kills_at_once() {
    let mut run = running();
    assert_eq!(run.step(Event::StopRequested(cancel())), Action::SendTerm);
    assert_eq!(run.step(Event::StopRequested(cancel())), Action::Wait);
    assert_eq!(run.step(Event::StopRequested(force())), Action::SendKill);
    assert_eq!(run.step(Event::StopRequested(force())), Action::Wait);
    let mut run = running();
    assert_eq!(run.step(Event::StopRequested(force())), Action::SendKill);
}

#[test]
fn command_that_has_not_begun_gets_no_grace() {
    let mut run = Run::new();
    assign(&mut run);
    assert_eq!(run.step(Event::StopRequested(cancel())), Action::SendKill);
}

#[test]
fn waiting_sandbox_ends_at_a_stop() {
    let mut run = Run::new();
    run.step(Event::InitReady);
    assert_eq!(run.step(Event::StopRequested(cancel())), Action::SendKill);
    assert_eq!(run.step(Event::Assigned(LIMITS)), Action::Wait);
}

/// A run whose command has ended.
fn ended() -> Run {
    let mut run = running();
    run.step(Event::ExecEnded(ExecEnd::Exited(0)));
    run
}

#[test]
fn time_for_removal_starts_with_the_wait() {
    let mut run = ended();
    run.now += REMOVAL_TIMEOUT * 2;
    assert_eq!(run.step(Event::RemovalAwaited), Action::Wait);
    assert_eq!(run.life.deadline(), Some(run.now + REMOVAL_TIMEOUT));
    assert_eq!(run.step(Event::Removed(true)), Action::Wait);
    assert_eq!(run.step(Event::RemovalAwaited), Action::Wait);
    assert_eq!(run.life.phase(), Phase::Cleared);
}

#[test]
fn failed_removal_is_tried_at_each_wait() {
    let mut run = ended();
    run.step(Event::RemovalAwaited);
    assert_eq!(run.step(Event::Removed(false)), Action::RemoveContainer);
    assert_eq!(run.step(Event::Removed(false)), Action::Wait);
    assert_eq!(run.step(Event::RemovalAwaited), Action::RemoveContainer);
    assert_eq!(run.step(Event::Removed(true)), Action::Wait);
    assert_eq!(run.life.phase(), Phase::Cleared);
}

#[test]
fn stop_before_init_sends_no_command() {
    let mut run = Run::new();
    let canceled = StopReason::Canceled;
    assert_eq!(run.step(Event::StopRequested(cancel())), Action::Wait);
    assert_eq!(run.step(Event::InitReady), Action::SendKill);
    let gone = run.step(Event::ClientGone(LastWords::default()));
    assert_eq!(gone, Action::Exit(SandboxExit::Stopped(canceled)));
}

#[test]
fn killed_client_does_not_end_running_command() {
    let killed = || exited(ClientEnd::Killed, true);
    let mut run = Run::new();
    run.step(Event::InitReady);
    assert_eq!(run.life.on(killed(), run.now).1, Action::CollectLastWords);
    run.step(Event::Assigned(LIMITS));
    run.step(Event::ExecSent);
    run.step(Event::ExecStarted);
    assert_eq!(run.step(killed()), Action::Wait);
    assert_eq!(run.life.client(), Some(ClientEnd::Killed));
    assert_eq!(run.step(Event::ReportsClosed), Action::CollectLastWords);
    let gone = run.step(Event::ClientGone(LastWords::default()));
    assert!(
        matches!(gone, Action::Exit(SandboxExit::Lost(_))),
        "{gone:?}"
    );
}

#[test]
fn sandbox_goes_on_without_its_client() {
    let detached = |is_reporting| exited(ClientEnd::Detached, is_reporting);
    let lost = "the sandbox ended, and its init reported no exit".to_owned();
    // How far the command is when init is gone: not there, handed over, running.
    let exits = [
        SandboxExit::EngineFailed(lost.clone()),
        SandboxExit::Lost(lost),
        SandboxExit::Signaled(libc::SIGKILL),
    ];
    for (step, exit) in exits.into_iter().enumerate() {
        let mut run = Run::new();
        assert_eq!(run.step(detached(true)), Action::Wait);
        if step > 0 {
            assign(&mut run);
        }
        if step > 1 {
            run.step(Event::ExecStarted);
        }
        assert_eq!(run.step(Event::ReportsClosed), Action::CollectLastWords);
        let gone = run.step(Event::ClientGone(LastWords::default()));
        assert_eq!(gone, Action::Exit(exit));
    }
    assert_eq!(Run::new().step(detached(false)), Action::CollectLastWords);
}

#[test]
fn refusal_is_told_from_killed_client() {
    for (end, is_refusal) in [(ClientEnd::Failed, true), (ClientEnd::Killed, false)] {
        let mut run = Run::new();
        run.step(exited(end, true));
        let gone = run.step(Event::ClientGone(LastWords {
            message: Some("podman: no".to_owned()),
            ..LastWords::default()
        }));
        let is_refused = matches!(&gone, Action::Exit(SandboxExit::Refused(_)));
        assert_eq!(is_refused, is_refusal, "{gone:?}");
    }
}

#[test]
fn early_deadline_changes_nothing() {
    let now = Instant::now();
    let life = Lifecycle::new(now);
    let taken = life.on(Event::DeadlinePassed, now + START_TIMEOUT / 2);
    assert_eq!(taken, (life, Action::Wait));
}
