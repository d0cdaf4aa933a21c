//! Calls as quickly as several callers can make them.

use std::time::{Duration, Instant};

use anyhow::Result;

/// What callers saw together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) calls_per_second: f64,
    /// Milliseconds.
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// Before the clock runs.
const WARM_UP: Duration = Duration::from_millis(500);

/// Runs `callers` loops of `call` for `time`. The argument of `call` is the number of the caller and of its call.
pub(crate) async fn hammer<F: Future<Output = Result<()>>>(
    callers: usize,
    time: Duration,
    call: impl Fn(usize, usize) -> F,
) -> Result<Rate> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + time;
    let loops = (0..callers).map(|caller| {
        let call = &call;
        async move {
            let mut times = Vec::new();
            let mut number = 0;
            loop {
                let from = Instant::now();
                if from >= end {
                    return Ok::<_, anyhow::Error>(times);
                }
                call(caller, number).await?;
                number += 1;
                let now = Instant::now();
                if from >= begin && now <= end {
                    times.push(now - from);
                }
            }
        }
    });
    let mut all = Vec::new();
    for times in futures_util::future::join_all(loops).await {
        all.extend(times?);
    }
    all.sort_unstable();
    let count = f64::from(u32::try_from(all.len())?);
    Ok(Rate {
        calls_per_second: count / time.as_secs_f64(),
        median: milliseconds(&all, 0.5),
        p99: milliseconds(&all, 0.99),
    })
}

/// The time below which this part of the sorted `times` lies.
pub(crate) fn milliseconds(times: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((times.len() as f64) * part) as usize;
    times
        .get(at.min(times.len().saturating_sub(1)))
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}
