//! A sink that keeps totals in memory, for tests and whoever looks at a running daemon from inside.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Measurement, Metric, Sink};

/// A metric's name and the values of its labels.
type Series = (&'static str, Vec<String>);

/// Everything reported so far. Its size is that of the sets of labels, which are few.
#[derive(Debug, Default)]
pub struct Totals(Mutex<BTreeMap<Series, Total>>);

#[derive(Debug, Default, Clone)]
struct Total {
    /// What a counter was raised by, or how many samples and calls there were.
    count: u64,
    /// Of samples; of calls, in seconds.
    sum: f64,
    last: Option<f64>,
    by_status: BTreeMap<String, u64>,
}

impl Sink for Totals {
    fn record(&self, metric: &'static Metric, labels: &[&str], measurement: Measurement<'_>) {
        let series = (
            metric.name,
            labels.iter().map(|&label| label.to_owned()).collect(),
        );
        let mut all = self.lock();
        let total = all.entry(series).or_default();
        match measurement {
            Measurement::Add(more) => total.count = total.count.saturating_add(more),
            Measurement::Set(value) => total.last = Some(value),
            Measurement::Sample(value) => {
                total.count += 1;
                total.sum += value;
            }
            Measurement::Called { status, took } => {
                total.count += 1;
                total.sum += took.as_secs_f64();
                *total.by_status.entry(status.to_owned()).or_default() += 1;
            }
        }
    }
}

impl Totals {
    /// What a counter has come to, or the number of samples or calls.
    pub fn count(&self, metric: &Metric, labels: &[&str]) -> u64 {
        self.total(metric, labels).count
    }

    /// The number of calls that ended with `status`.
    pub fn calls(&self, metric: &Metric, labels: &[&str], status: &str) -> u64 {
        let by_status = self.total(metric, labels).by_status;
        by_status.get(status).copied().unwrap_or(0)
    }

    /// Of all samples; of all calls, in seconds.
    pub fn sum(&self, metric: &Metric, labels: &[&str]) -> f64 {
        self.total(metric, labels).sum
    }

    pub fn gauge(&self, metric: &Metric, labels: &[&str]) -> Option<f64> {
        self.total(metric, labels).last
    }

    /// The names of everything that was reported at least once.
    pub fn metrics(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.lock().keys().map(|(name, _)| *name).collect();
        names.dedup();
        names
    }

    fn total(&self, metric: &Metric, labels: &[&str]) -> Total {
        let all = self.lock();
        let series = all.iter().find(|((name, values), _)| {
            *name == metric.name && values.iter().map(String::as_str).eq(labels.iter().copied())
        });
        series.map(|(_, total)| total.clone()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Series, Total>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
