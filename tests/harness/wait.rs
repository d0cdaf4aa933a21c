//! Waiting for another process: the one place that sleeps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `probe` gives a value. The error names `what` and the last reason that `probe` gave.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut last = String::from("not yet");
    loop {
        match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        if started.elapsed() > limit {
            bail!("waited {limit:?} for {what}: {last}");
        }
        pause(PAUSE);
    }
}

/// Lets real time pass, for tests of what must not happen and of expiries that another process keeps.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of another process cannot be set"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The Unix time of the moment `after` now, as flags take it.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of another process is this one"
)]
pub fn unix_time(after: Duration) -> Result<String> {
    let moment = SystemTime::now() + after;
    Ok(moment.duration_since(UNIX_EPOCH)?.as_secs().to_string())
}
