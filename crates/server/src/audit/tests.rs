use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

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

    fn event(&self, event: &Event<'_>) {
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
async fn writes_nothing_when_disabled() {
    let audit = Audit::new(false, "svid.v1.SVID", "MintX509SVID");
    let (lines, ()) = recorded(async {
        audit.success(&Fields::new().with("spiffe_id", "spiffe://td/a"));
        audit.failure("Internal", "no", &Fields::new());
    })
    .await;
    assert_eq!(lines, Vec::<Line>::new());
}

#[tokio::test]
async fn names_fields_as_spire_does_and_gathers_the_rest() {
    let mut audit = Audit::new(true, "entry.v1.Entry", "BatchCreateEntry");
    audit.request_id = "r".to_owned();
    audit.authorized_as = "local";
    audit.authorized_via = "transport";
    audit.caller = AuditCaller::Local {
        uid: 7,
        gid: 8,
        path: Some("/bin/x".to_owned()),
    };
    let fields = Fields::new()
        .with("spiffe_id", "spiffe://td/a")
        .with("downstream", true)
        .with("subject", "C=US");
    let (lines, ()) = recorded(async { audit.success(&fields) }).await;
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
    let mut audit = Audit::new(true, "svid.v1.SVID", "BatchNewX509SVID");
    audit.caller = AuditCaller::Remote {
        address: "10.0.0.1:5".to_owned(),
        id: SpiffeId::parse("spiffe://td/spire/agent/x").ok(),
    };
    let (lines, ()) =
        recorded(async { audit.failure("PermissionDenied", "no", &Fields::new()) }).await;
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
