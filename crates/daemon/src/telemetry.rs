//! What a daemon counts and measures, and the handle by which each of its components does so.
//!
//! A component holds a [`Telemetry`] and reports against the metrics that its daemon declares as statics. It knows no
//! exporter: what becomes of a measurement is the [`Sink`]'s business. Without a sink a report is one branch: nothing is
//! allocated, and no clock is read.
//!
//! Labels must have few values: methods, status codes, names of plugins. SPIFFE IDs, addresses, entry IDs and anything
//! else that a peer chooses are never labels, or the memory of every exporter is in that peer's hands.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub mod totals;

/// One thing that is measured, declared once.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    pub kind: Kind,
    /// In snake case, without the daemon's prefix and without a unit.
    pub name: &'static str,
    /// SPIRE's key without its prefix; a label's name in braces stands for its value. Empty where SPIRE has none.
    pub spire: &'static str,
    pub labels: &'static [&'static str],
    /// One sentence for an operator.
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// What is so now.
    Gauge,
    /// A number of which the distribution matters.
    Sample,
    /// Something that is done, of which number, outcome and duration matter. SPIRE: a call counter.
    Call,
}

/// One report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measurement<'m> {
    Add(u64),
    Set(f64),
    Sample(f64),
    /// `status` is the name of a gRPC status code, `OK` among them.
    Called {
        status: &'m str,
        took: Duration,
    },
}

/// What takes measurements. Called where they are made, by many threads: it must be quick and must not wait.
pub trait Sink: Debug + Send + Sync {
    /// `labels` are the values of `metric.labels`, as many and in the same order.
    fn record(&self, metric: &'static Metric, labels: &[&str], measurement: Measurement<'_>);
}

macro_rules! metrics {
    ($($(#[$about:meta])* $kind:ident),* $(,)?) => {$(
        $(#[$about])*
        #[derive(Debug)]
        pub struct $kind<const LABELS: usize>(Metric);

        impl<const LABELS: usize> $kind<LABELS> {
            /// The order is that of [`Metric`].
            pub const fn new(
                name: &'static str,
                spire: &'static str,
                labels: &'static [&'static str; LABELS],
                help: &'static str,
            ) -> Self {
                Self(Metric { kind: Kind::$kind, name, spire, labels, help })
            }

            pub const fn metric(&'static self) -> &'static Metric {
                &self.0
            }
        }
    )*};
}

metrics! {
    /// A declared [`Kind::Counter`].
    Counter,
    /// A declared [`Kind::Gauge`].
    Gauge,
    /// A declared [`Kind::Sample`].
    Sample,
    /// A declared [`Kind::Call`].
    Call,
}

/// The handle. Cheap to clone; the default measures nothing.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(Option<Arc<dyn Sink>>);

/// An error by which a call can end.
pub trait CallError {
    /// The name of the gRPC status code that stands for it.
    fn status(&self) -> &'static str {
        UNKNOWN
    }
}

const OK: &str = "OK";
const CANCELED: &str = "Canceled";
const UNKNOWN: &str = "Unknown";

impl Telemetry {
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self(Some(sink))
    }

    /// For a value that costs something to find out.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    pub fn count<const LABELS: usize>(
        &self,
        counter: &'static Counter<LABELS>,
        labels: [&str; LABELS],
    ) {
        self.add(counter, 1, labels);
    }

    pub fn add<const LABELS: usize>(
        &self,
        counter: &'static Counter<LABELS>,
        more: usize,
        labels: [&str; LABELS],
    ) {
        if let Some(sink) = &self.0
            && more > 0
        {
            let more = u64::try_from(more).unwrap_or(u64::MAX);
            sink.record(counter.metric(), &labels, Measurement::Add(more));
        }
    }

    pub fn set<const LABELS: usize>(
        &self,
        gauge: &'static Gauge<LABELS>,
        value: f64,
        labels: [&str; LABELS],
    ) {
        if let Some(sink) = &self.0 {
            sink.record(gauge.metric(), &labels, Measurement::Set(value));
        }
    }

    /// A gauge that is a number of things.
    pub fn set_number<const LABELS: usize>(
        &self,
        gauge: &'static Gauge<LABELS>,
        number: usize,
        labels: [&str; LABELS],
    ) {
        self.set(gauge, as_f64(number), labels);
    }

    /// A gauge that is a point in time, in Unix seconds.
    pub fn set_time<const LABELS: usize>(
        &self,
        gauge: &'static Gauge<LABELS>,
        unix_seconds: i64,
        labels: [&str; LABELS],
    ) {
        #[expect(clippy::cast_precision_loss, reason = "exact for millions of years")]
        let value = unix_seconds as f64;
        self.set(gauge, value, labels);
    }

    pub fn sample<const LABELS: usize>(
        &self,
        sample: &'static Sample<LABELS>,
        number: usize,
        labels: [&str; LABELS],
    ) {
        if let Some(sink) = &self.0 {
            let measurement = Measurement::Sample(as_f64(number));
            sink.record(sample.metric(), &labels, measurement);
        }
    }

    /// Begins a call that [`Timer::end`] ends.
    pub fn start<'t, const LABELS: usize>(
        &self,
        call: &'static Call<LABELS>,
        labels: [&'t str; LABELS],
    ) -> Timer<'t, LABELS> {
        Timer {
            call,
            labels,
            running: self.0.clone().map(|sink| (sink, Instant::now())),
        }
    }
}

/// A call under way. One that is dropped without an end was canceled.
#[derive(Debug)]
#[must_use]
pub struct Timer<'t, const LABELS: usize> {
    call: &'static Call<LABELS>,
    labels: [&'t str; LABELS],
    running: Option<(Arc<dyn Sink>, Instant)>,
}

impl<const LABELS: usize> Timer<'_, LABELS> {
    /// `status` is the name of a gRPC status code.
    pub fn end(mut self, status: &str) {
        self.record(status);
    }

    /// Whether anybody takes the measurement.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn end_with<T, E: CallError>(self, outcome: &Result<T, E>) {
        self.end(outcome.as_ref().err().map_or(OK, CallError::status));
    }

    fn record(&mut self, status: &str) {
        if let Some((sink, began)) = self.running.take() {
            let took = began.elapsed();
            let measurement = Measurement::Called { status, took };
            sink.record(self.call.metric(), &self.labels, measurement);
        }
    }
}

impl<const LABELS: usize> Drop for Timer<'_, LABELS> {
    fn drop(&mut self) {
        self.record(CANCELED);
    }
}

impl CallError for config::fault::Fault {}

/// What is wrong with the declaration of metrics; empty when nothing is. For the tests of the daemons.
pub fn faults_of(metrics: &[&Metric]) -> Vec<String> {
    let is_word = |text: &str| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
            && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let mut faults = Vec::new();
    for (position, metric) in metrics.iter().enumerate() {
        let name = metric.name;
        let mut fault = |what: &str| faults.push(format!("{name}: {what}"));
        if metrics
            .iter()
            .take(position)
            .any(|other| other.name == name)
        {
            fault("declared twice");
        }
        if !is_word(name) || !metric.labels.iter().all(|label| is_word(label)) {
            fault("names are in snake case");
        }
        if metric.help.is_empty() || !metric.help.ends_with('.') {
            fault("help is a sentence");
        }
        if metric.labels.contains(&"status") && metric.kind == Kind::Call {
            fault("a call has its status by itself");
        }
        let mut rest = metric.spire;
        while let Some((_, braced)) = rest.split_once('{') {
            let (label, after) = braced.split_once('}').unwrap_or((braced, ""));
            if !metric.labels.contains(&label) {
                fault("SPIRE's key has a part that is no label");
            }
            rest = after;
        }
    }
    faults
}

/// Exact up to 2^32, which no number of things here reaches.
fn as_f64(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::totals::Totals;
    use super::*;

    static OPENED: Counter<1> = Counter::new("opened", "{door}.opened", &["door"], "Doors opened.");
    static OPEN: Gauge<0> = Gauge::new("open", "", &[], "Doors open.");
    static WALK: Call<0> = Call::new("walk", "walk", &[], "Walks.");
    static STEPS: Sample<0> = Sample::new("steps", "", &[], "Steps of a walk.");

    #[derive(Debug)]
    struct Tired;

    impl CallError for Tired {
        fn status(&self) -> &'static str {
            "ResourceExhausted"
        }
    }

    fn recorded() -> (Telemetry, Arc<Totals>) {
        let totals = Arc::new(Totals::default());
        (
            Telemetry::new(Arc::<Totals>::clone(&totals) as Arc<dyn Sink>),
            totals,
        )
    }

    #[test]
    fn counters_grow_by_label_and_gauges_show_the_last_value() {
        let (telemetry, totals) = recorded();
        telemetry.count(&OPENED, ["front"]);
        telemetry.add(&OPENED, 2, ["front"]);
        telemetry.count(&OPENED, ["back"]);
        telemetry.set_number(&OPEN, 3, []);
        telemetry.set_number(&OPEN, 2, []);
        assert_eq!(totals.count(OPENED.metric(), &["front"]), 3);
        assert_eq!(totals.count(OPENED.metric(), &["back"]), 1);
        assert_eq!(totals.gauge(OPEN.metric(), &[]), Some(2.0));
    }

    #[test]
    fn nothing_added_is_nothing_reported() {
        let (telemetry, totals) = recorded();
        telemetry.add(&OPENED, 0, ["front"]);
        assert_eq!(totals.metrics(), Vec::<&str>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_has_a_duration_and_a_status() {
        let (telemetry, totals) = recorded();
        for outcome in [Ok(()), Err(Tired)] {
            let timer = telemetry.start(&WALK, []);
            tokio::time::sleep(Duration::from_secs(2)).await;
            timer.end_with(&outcome);
        }
        assert_eq!(totals.calls(WALK.metric(), &[], "OK"), 1);
        assert_eq!(totals.calls(WALK.metric(), &[], "ResourceExhausted"), 1);
        assert_eq!(totals.sum(WALK.metric(), &[]), 4.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_any_more_was_canceled() {
        let (telemetry, totals) = recorded();
        let walk = async {
            let timer = telemetry.start(&WALK, []);
            std::future::pending::<()>().await;
            timer.end(OK);
        };
        tokio::time::timeout(Duration::from_secs(1), walk)
            .await
            .unwrap_err();
        assert_eq!(totals.calls(WALK.metric(), &[], "Canceled"), 1);
        assert_eq!(totals.calls(WALK.metric(), &[], "OK"), 0);
    }

    #[test]
    fn without_a_sink_everything_is_accepted_and_nothing_kept() {
        let telemetry = Telemetry::default();
        assert!(!telemetry.is_enabled());
        telemetry.count(&OPENED, ["front"]);
        telemetry.sample(&STEPS, 5, []);
        telemetry.set(&OPEN, 1.5, []);
        let timer = telemetry.start(&WALK, []);
        assert!(timer.running.is_none(), "the clock was read");
        timer.end(OK);
    }

    #[test]
    fn wrong_declarations_are_found() {
        static TWICE: Counter<0> = Counter::new("opened", "", &[], "Doors opened.");
        static UPPER: Counter<1> = Counter::new("Opened", "", &["door"], "Doors opened.");
        static UNKNOWN_PART: Counter<0> = Counter::new("a", "{door}.x", &[], "Doors opened.");
        static STATUS: Call<1> = Call::new("b", "", &["status"], "Walks.");
        static NO_HELP: Gauge<0> = Gauge::new("c", "", &[], "");
        assert!(faults_of(&[OPENED.metric(), OPEN.metric(), WALK.metric()]).is_empty());
        for wrong in [
            TWICE.metric(),
            UPPER.metric(),
            UNKNOWN_PART.metric(),
            STATUS.metric(),
            NO_HELP.metric(),
        ] {
            let faults = faults_of(&[OPENED.metric(), wrong]);
            assert_eq!(faults.len(), 1, "{}: {faults:?}", wrong.name);
        }
    }
}
