//! A limit for log lines that others cause: unauthenticated peers, local users, a plugin that fails.
//!
//! Who can make a daemon write a line can fill its disk and hide other lines among them. So each source gets a few lines
//! in a window and all sources together some more; what is left out is counted and said with the next line.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(10);
const OF_SOURCE: u32 = 10;
const OVERALL: u32 = 100;
/// More sources than this in a window share what is left of the lines of all.
const SOURCES: usize = 1024;

/// Lines by source, such as a user or an address.
#[derive(Debug)]
pub struct LogLimit<K>(Mutex<Window<K>>);

#[derive(Debug)]
struct Window<K> {
    began: Option<Instant>,
    overall: u32,
    sources: HashMap<K, u32>,
    left_out: u64,
}

impl<K> Default for LogLimit<K> {
    fn default() -> Self {
        Self(Mutex::new(Window {
            began: None,
            overall: 0,
            sources: HashMap::new(),
            left_out: 0,
        }))
    }
}

impl<K: Clone + Eq + Hash> LogLimit<K> {
    /// Whether this source may write a line now: then the number of lines, of any source, that were left out since the
    /// last one.
    pub fn admit(&self, source: &K) -> Option<u64> {
        let now = Instant::now();
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window
            .began
            .is_none_or(|began| now.duration_since(began) >= WINDOW)
        {
            window.began = Some(now);
            window.overall = 0;
            window.sources.clear();
        }
        let written = window.sources.get(source).copied().unwrap_or_default();
        if window.overall >= OVERALL || written >= OF_SOURCE {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.overall += 1;
        if written > 0 || window.sources.len() < SOURCES {
            window.sources.insert(source.clone(), written + 1);
        }
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(limit: &LogLimit<u32>, source: u32, times: u32) -> usize {
        (0..times)
            .filter(|_| limit.admit(&source).is_some())
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_writes_a_few_lines_and_what_is_left_out_is_counted() {
        let limit = LogLimit::default();
        assert_eq!(admitted(&limit, 1, 10_000), 10);
        assert_eq!(limit.admit(&2), Some(9_990));
        assert_eq!(limit.admit(&2), Some(0));
        assert_eq!(limit.admit(&1), None);
        tokio::time::advance(WINDOW).await;
        assert_eq!(limit.admit(&1), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_together_write_no_more_than_their_part() {
        let limit = LogLimit::default();
        let all: usize = (0..100_000).map(|source| admitted(&limit, source, 1)).sum();
        assert_eq!(all, 100);
        assert!(limit.0.lock().unwrap().sources.len() <= SOURCES);
    }
}
