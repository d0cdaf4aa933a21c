use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use spiffe::clock::{ManualClock, from_unix};

use super::*;

/// Keeps events, or fails on demand.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    events: Mutex<Vec<Event>>,
    failing: AtomicBool,
}

impl Recording {
    /// Takes the events that were recorded since the last time.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }

    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }
}

#[async_trait]
impl AuditSink for Recording {
    async fn record(&self, event: Event) -> Result<(), AuditError> {
        // A sink that has to wait, as a ledger's does.
        tokio::task::yield_now().await;
        if self.failing.load(Ordering::SeqCst) {
            return Err(AuditError("the ledger is full".to_owned()));
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

pub(crate) fn auditor(sink: Arc<dyn AuditSink>) -> Auditor {
    Auditor::new(Some(sink), Arc::new(ManualClock::new(from_unix(7))))
}

/// The fields of one audit line.
pub(crate) type Line = BTreeMap<String, String>;

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Line>>>);

struct Reader<'a>(&'a mut Line);

impl Visit for Reader<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::new();
        event.record(&mut Reader(&mut line));
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The audit lines that `work` writes, and what it returns.
pub(crate) async fn recorded<T>(work: impl Future<Output = T>) -> (Vec<Line>, T) {
    let recorder = Recorder::default();
    let done = work.with_subscriber(recorder.clone()).await;
    let lines = std::mem::take(&mut *recorder.0.lock().unwrap());
    (lines, done)
}

#[test]
fn keeps_the_last_value_and_drops_empty_ones() {
    let fields = Fields::new().with("ttl", 5).with("ttl", 7).with("hint", "");
    assert_eq!(fields.value("ttl"), Some("7"));
    assert_eq!(fields.value("hint"), None);
}

#[tokio::test]
async fn a_record_without_a_sink_asks_for_no_details() {
    let auditor = Auditor::new(None, Arc::new(ManualClock::new(from_unix(7))));
    let record = auditor.begin(|| panic!("nobody reads it"));
    record.describe(|| panic!("nobody reads it"));
    record.finish(Outcome::Success).await.unwrap();
    assert!(!record.is_enabled());
}

#[tokio::test]
async fn a_call_ends_once() {
    let sink = Arc::new(Recording::default());
    let record = Arc::new(auditor(Arc::<Recording>::clone(&sink)).begin(CallContext::default));
    let guard = Unfinished(Arc::clone(&record));
    record.describe(|| Fields::new().with("ttl", 5));
    record.finish(Outcome::Success).await.unwrap();
    record.finish(refusal()).await.unwrap();
    drop(guard);
    tokio::task::yield_now().await;
    let events = sink.take();
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(event.at, from_unix(7));
    let EventKind::Call {
        outcome, fields, ..
    } = &event.kind
    else {
        panic!("{event:?}")
    };
    assert_eq!(*outcome, Outcome::Success);
    assert_eq!(fields.value("ttl"), Some("5"));
}

#[tokio::test]
async fn a_call_whose_caller_left_is_recorded_as_canceled() {
    let sink = Arc::new(Recording::default());
    let record = auditor(Arc::<Recording>::clone(&sink)).begin(CallContext::default);
    drop(Unfinished(Arc::new(record)));
    // The sink waits once, in a task of its own.
    let mut events = sink.take();
    while events.is_empty() {
        tokio::task::yield_now().await;
        events = sink.take();
    }
    assert!(
        matches!(
            &events[0].kind,
            EventKind::Call { outcome: Outcome::Error { code, .. }, .. } if *code == "Canceled"
        ),
        "{events:?}"
    );
}

fn refusal() -> Outcome {
    Outcome::Error {
        code: "PermissionDenied",
        message: "no".to_owned(),
    }
}

fn logged() -> Auditor {
    auditor(Arc::new(LogSink))
}

#[tokio::test]
async fn names_fields_as_spire_does_and_gathers_the_rest() {
    let record = logged().begin(|| CallContext {
        request_id: "r".to_owned(),
        service: "entry.v1.Entry".to_owned(),
        method: "BatchCreateEntry".to_owned(),
        caller: AuditCaller::Local {
            uid: 7,
            gid: 8,
            path: Some("/bin/x".to_owned()),
        },
        ..CallContext::default()
    });
    record.authorized("local", "transport");
    let fields = Fields::new()
        .with("spiffe_id", "spiffe://td/a")
        .with("downstream", true)
        .with("subject", "C=US");
    record.item(Outcome::Success, fields);
    let (lines, ended) = recorded(record.finish(Outcome::Success)).await;
    ended.unwrap();
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    for (name, value) in [
        ("type", "audit"),
        ("message", "API accessed"),
        ("status", "success"),
        ("service", "entry.v1.Entry"),
        ("method", "BatchCreateEntry"),
        ("request_id", "r"),
        ("authorized_as", "local"),
        ("authorized_via", "transport"),
        ("caller_uid", "7"),
        ("caller_gid", "8"),
        ("caller_path", "/bin/x"),
        ("spiffe_id", "spiffe://td/a"),
        ("more", "downstream=\"true\" subject=\"C=US\""),
    ] {
        assert_eq!(line.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(
        !line.contains_key("caller_addr") && !line.contains_key("status_code"),
        "{line:?}"
    );
}

#[tokio::test]
async fn says_who_was_refused_and_why() {
    let record = logged().begin(|| CallContext {
        caller: AuditCaller::Remote {
            address: "10.0.0.1:5".to_owned(),
            id: SpiffeId::parse("spiffe://td/spire/agent/x").ok(),
        },
        ..CallContext::default()
    });
    let (lines, ended) = recorded(record.finish(refusal())).await;
    ended.unwrap();
    let line = &lines[0];
    assert_eq!(line["status"], "error");
    assert_eq!(line["status_code"], "PermissionDenied");
    assert_eq!(line["status_message"], "no");
    assert_eq!(line["caller_addr"], "10.0.0.1:5");
    assert_eq!(line["caller_id"], "spiffe://td/spire/agent/x");
    assert!(
        !line.contains_key("caller_uid") && !line.contains_key("request_id"),
        "{line:?}"
    );
}

#[tokio::test]
async fn a_batch_has_a_line_for_each_item_and_none_of_its_own() {
    let record = logged().begin(CallContext::default);
    let (lines, ()) = recorded(async {
        record
            .document("an X509-SVID", Fields::new().with("entry_id", "a"))
            .await
            .unwrap();
        record.item(refusal(), Fields::new().with("entry_id", "b"));
        record.finish(Outcome::Success).await.unwrap();
    })
    .await;
    let entries: Vec<_> = lines.iter().map(|line| &line["entry_id"]).collect();
    assert_eq!(entries, ["a", "b"]);
}

#[tokio::test]
async fn a_failure_after_a_document_has_its_own_line() {
    let record = logged().begin(CallContext::default);
    let (lines, ()) = recorded(async {
        record
            .document("an X509-SVID", Fields::new())
            .await
            .unwrap();
        record.finish(refusal()).await.unwrap();
    })
    .await;
    let statuses: Vec<_> = lines.iter().map(|line| &line["status"]).collect();
    assert_eq!(statuses, ["success", "error"]);
}
