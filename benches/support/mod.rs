//! Shared by the benches: clocks, percentiles, and what the system says of processes.

pub mod api;
pub mod podman;
pub mod processes;
pub mod roles;

use std::{
    process::{Command, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

/// The binary that is measured: that of `make build`, unless `BENCH_BINARY` names another one.
pub static BINARY: LazyLock<String> = LazyLock::new(|| {
    let built = env!("CARGO_BIN_EXE_cynode").to_owned();
    std::env::var("BENCH_BINARY").unwrap_or(built)
});

/// Interval at which a bench looks for a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time after which a condition that a bench waits for counts as never.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Duration of some work.
pub fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Durations of one kind of work.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Duration in seconds that this percentage of all does not exceed.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        let at = (times.len() * percent).div_ceil(100).max(1) - 1;
        times[at.min(times.len() - 1)].as_secs_f64()
    }

    /// Median in seconds.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

/// Waits until there is something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "waited in vain for {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Runs a process to its end; its stdout.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
