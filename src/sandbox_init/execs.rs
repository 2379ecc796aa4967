//! Execs of a sandbox: the commands that run beside its first one, or without one.
//!
//! Each has a [keeper]. The table of them and their starts are under one lock, which the thread that reaps takes, too: so
//! an exec is in the table before its end is looked up, and a program that can't be executed is reaped where it was
//! started.

use super::{
    Reporter,
    channel::Channel,
    command::{self, Leader},
    keeper, oom,
    terminal::Terminal,
    wire::{ExecEnd, ExecNumber, ExecSpec, ExecStreams, Report, Size},
};
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Exec that runs.
struct Running {
    number: ExecNumber,
    keeper: libc::pid_t,
    terminal: Option<Terminal>,
    /// Processes that the kernel had killed for want of memory before it began.
    kills_before: u64,
}

/// Table of the execs that run.
pub(super) struct Execs {
    running: Mutex<Vec<Running>>,
    /// Notified of each start, and when all is to end.
    changed: Condvar,
    reporter: Arc<Reporter>,
}

impl Execs {
    pub(super) fn new(reporter: Arc<Reporter>) -> Self {
        Self {
            running: Mutex::default(),
            changed: Condvar::new(),
            reporter,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an exec with the descriptors that came with the request, and reports that it runs, or how it could not.
    pub(super) fn start(
        &self,
        number: ExecNumber,
        spec: &ExecSpec,
        channel: &mut Channel,
    ) -> io::Result<()> {
        let mut running = self.lock();
        let kills_before = oom::kills();
        let end = match spawn(spec, channel) {
            Ok(Ok((keeper, terminal))) => {
                running.push(Running {
                    number,
                    keeper,
                    terminal,
                    kills_before,
                });
                None
            }
            Ok(Err(end)) => Some(end),
            Err(error) => Some(ExecEnd::NotStarted(error.raw_os_error().unwrap_or(0))),
        };
        channel.drop_rest();
        self.reporter.send(number, &Report::Started)?;
        drop(running);
        self.changed.notify_all();
        match end {
            Some(end) => self.reporter.send(number, &Report::Ended(end)),
            None => Ok(()),
        }
    }

    /// Sends a signal to an exec that has not ended. The report comes first, as for the first command.
    pub(super) fn signal(&self, number: ExecNumber, signal: i32) -> io::Result<()> {
        for exec in self.lock().iter().filter(|exec| exec.number == number) {
            self.reporter.send(number, &Report::Signaled)?;
            keeper::request_signal(exec.keeper, signal);
        }
        Ok(())
    }

    /// Changes the size of an exec's terminal, where it has one.
    pub(super) fn resize(&self, number: ExecNumber, size: Size) {
        let running = self.lock();
        let exec = running.iter().find(|exec| exec.number == number);
        if let Some(terminal) = exec.and_then(|exec| exec.terminal.as_ref()) {
            // A terminal that takes no size keeps the one that it has.
            let _ = terminal.resize(size);
        }
    }

    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Wakes the thread that reaps, should it wait for a start.
    pub(super) fn wake(&self) {
        // A thread that has looked, and doesn't wait yet, holds the lock.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits for a start while none runs and `is_over` does not hold.
    pub(super) fn wait_for_start(&self, is_over: impl Fn() -> bool) {
        let idle = |running: &mut Vec<Running>| running.is_empty() && !is_over();
        let running = self.changed.wait_while(self.lock(), idle);
        drop(running.unwrap_or_else(PoisonError::into_inner));
    }

    /// Reaps a child that has ended, and reports the end of the exec that it kept, if any; its wait status.
    pub(super) fn reap(&self, pid: libc::pid_t) -> io::Result<libc::c_int> {
        let mut running = self.lock();
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
            // A program that could not be executed: it was reaped where it was started.
            return Ok(0);
        }
        let Some(at) = running.iter().position(|exec| exec.keeper == pid) else {
            return Ok(status);
        };
        let exec = running.swap_remove(at);
        drop(running);
        let end = command::end_of(status);
        if end == ExecEnd::Killed(libc::SIGKILL) && oom::kills() > exec.kills_before {
            self.reporter.send(exec.number, &Report::OomKilled)?;
        }
        self.reporter.send(exec.number, &Report::Ended(end))?;
        Ok(status)
    }

    /// Reports all execs as killed: they are dead, and were not reaped one by one.
    pub(super) fn report_killed(&self) -> io::Result<()> {
        for exec in self.lock().drain(..) {
            let end = ExecEnd::Killed(libc::SIGKILL);
            self.reporter.send(exec.number, &Report::Ended(end))?;
        }
        Ok(())
    }
}

/// Starts an exec: its keeper and its terminal, or its end where its program can't be executed.
fn spawn(
    spec: &ExecSpec,
    channel: &mut Channel,
) -> io::Result<Result<(libc::pid_t, Option<Terminal>), ExecEnd>> {
    let (stdio, mut errors, terminal) = match spec.streams {
        ExecStreams::Terminal(size) => {
            let [stdin, output] = channel.take()?;
            let errors = File::from(output.try_clone()?);
            let (terminal, end) = Terminal::open(size)?;
            terminal.relay(stdin, output)?;
            (
                [end.try_clone()?, end.try_clone()?, end],
                errors,
                Some(terminal),
            )
        }
        _ => {
            let streams: [OwnedFd; 3] = channel.take()?;
            let errors = File::from(streams[2].try_clone()?);
            (streams, errors, None)
        }
    };
    let leader = Leader::Keeper {
        has_terminal: terminal.is_some(),
        is_detached: spec.is_detached,
    };
    let started = command::start(spec, stdio.map(Stdio::from), leader)?;
    Ok(match started {
        Ok(keeper) => Ok((keeper, terminal)),
        Err(error) => Err(command::not_started(&mut errors, spec, &error)),
    })
}
