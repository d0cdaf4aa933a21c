//! Pauses between attempts: growing, bounded, spread.

use std::sync::Arc;
use std::time::Duration;

use spiffe::random::{Random, unit_interval};

/// SPIRE: backoff, factor 1.5 and ± 10 %.
const FACTOR: f64 = 1.5;
const SPREAD: f64 = 0.1;

/// A sequence of pauses that starts over when something works.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    random: Arc<dyn Random>,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration, random: Arc<dyn Random>) -> Self {
        Self {
            first,
            longest: longest.max(first),
            next: first,
            random,
        }
    }

    /// The pause to make now.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.mul_f64(FACTOR).min(self.longest);
        spread(pause, &*self.random)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A pause within ± 10 %, so that many nodes do not act at once.
pub(crate) fn spread(pause: Duration, random: &dyn Random) -> Duration {
    pause.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * unit_interval(random))
}

#[cfg(test)]
mod tests {
    use spiffe::random::SystemRandom;

    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(
            Duration::from_secs(4),
            Duration::from_secs(10),
            Arc::new(SystemRandom),
        );
        let around = |pause: Duration, seconds: f64| {
            (pause.as_secs_f64() - seconds).abs() <= seconds * 0.1001
        };
        for expected in [4.0, 6.0, 9.0, 10.0, 10.0] {
            let pause = backoff.next();
            assert!(around(pause, expected), "{pause:?} is not near {expected}");
        }
        backoff.reset();
        assert!(around(backoff.next(), 4.0));
    }

    #[test]
    fn the_longest_pause_is_never_below_the_first() {
        let mut backoff = Backoff::new(
            Duration::from_secs(4),
            Duration::from_secs(1),
            Arc::new(SystemRandom),
        );
        assert!(backoff.next() > Duration::from_secs(3));
        assert!(backoff.next() > Duration::from_secs(3));
    }
}
