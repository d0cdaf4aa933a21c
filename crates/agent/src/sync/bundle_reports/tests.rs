use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;

/// Counts what an operator would read.
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        if *event.metadata().level() <= Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn unsupported(reason: &str) -> ConvertError {
    ConvertError::UnsupportedAuthority(reason.to_owned())
}

type Step<'a> = &'a dyn Fn(&mut BundleReports);

/// Does each of `steps` with the same reports, and gives how many warnings each one logs.
fn warnings_of(steps: &[Step<'_>]) -> Vec<usize> {
    let warnings = Arc::new(AtomicUsize::new(0));
    let mut reports = BundleReports::default();
    tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
        steps
            .iter()
            .map(|step| {
                step(&mut reports);
                warnings.swap(0, Ordering::Relaxed)
            })
            .collect()
    })
}

#[test]
fn what_is_skipped_is_logged_once_for_each_change_and_trust_domain() {
    let one = [unsupported("a")];
    let two = [unsupported("a"), unsupported("b")];
    let logged = warnings_of(&[
        &|reports| reports.received("a.test", &[]),
        &|reports| reports.received("a.test", &one),
        &|reports| reports.received("a.test", &one),
        &|reports| reports.received("b.test", &one),
        &|reports| reports.received("a.test", &two),
        &|reports| reports.received("a.test", &two),
        &|reports| reports.received("a.test", &[]),
        &|reports| reports.received("a.test", &two),
        &|reports| reports.removed("a.test"),
        &|reports| reports.received("a.test", &two),
    ]);
    assert_eq!(logged, [0, 1, 0, 1, 1, 0, 0, 1, 0, 1]);
}

#[test]
fn a_bundle_that_cannot_be_used_is_logged_again_after_it_could_be() {
    let logged = warnings_of(&[
        &|reports| reports.report("a.test", "broken"),
        &|reports| reports.report("a.test", "broken"),
        &|reports| reports.report("a.test", "of another trust domain"),
        &|reports| reports.received("a.test", &[]),
        &|reports| reports.report("a.test", "broken"),
    ]);
    assert_eq!(logged, [1, 0, 1, 0, 1]);
}

#[test]
fn trust_domains_that_nobody_names_are_forgotten() {
    let mut reports = BundleReports::default();
    reports.report("a.test", "broken");
    reports.received("b.test", &[unsupported("a")]);
    reports.received("c.test", &[unsupported("a")]);
    reports.keep_only(&BTreeSet::from(["c.test"]));
    assert!(reports.unreadable.is_empty());
    assert_eq!(Vec::from_iter(reports.skipped.keys()), ["c.test"]);
}
