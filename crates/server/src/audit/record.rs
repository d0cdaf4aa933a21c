//! What is known of one call while it runs, and the event that it becomes.

use std::future::Future as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use spiffe::clock::Clock;

use super::{AuditError, AuditSink, CallContext, Event, EventKind, Fields, Item, Outcome};

/// Makes the record of each call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Auditor {
    /// None: nothing is audited, and no call pays for it.
    sink: Option<Arc<dyn AuditSink>>,
    clock: Arc<dyn Clock>,
}

impl Auditor {
    pub fn new(sink: Option<Arc<dyn AuditSink>>, clock: Arc<dyn Clock>) -> Self {
        Self { sink, clock }
    }

    pub fn is_enabled(&self) -> bool {
        self.sink.is_some()
    }

    /// The record of a call that begins. `context` is made only when somebody will read it.
    pub fn begin(&self, context: impl FnOnce() -> CallContext) -> CallRecord {
        CallRecord(self.sink.as_ref().map(|sink| Live {
            sink: Arc::clone(sink),
            clock: Arc::clone(&self.clock),
            state: Mutex::new(State {
                call: Arc::new(context()),
                fields: Fields::new(),
                items: Vec::new(),
                documents: 0,
                finished: false,
            }),
        }))
    }
}

/// One call, for handlers to add details to. Without a sink it does nothing.
#[derive(Debug, Default)]
pub struct CallRecord(Option<Live>);

#[derive(Debug)]
struct Live {
    sink: Arc<dyn AuditSink>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    call: Arc<CallContext>,
    fields: Fields,
    items: Vec<Item>,
    documents: usize,
    finished: bool,
}

impl CallRecord {
    /// Whether anybody reads the record: callers skip the work of collecting details when not.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// As what the caller was let in. SPIRE: `authorized_as` and `authorized_via`.
    pub fn authorized(&self, authorized_as: &'static str, authorized_via: &'static str) {
        if let Some(live) = &self.0 {
            let mut state = live.state();
            let call = Arc::make_mut(&mut state.call);
            call.authorized_as = authorized_as;
            call.authorized_via = authorized_via;
        }
    }

    /// Adds to what the call is about. To be called as early as the detail is known, so that a refusal names it, too.
    pub fn describe(&self, fields: impl FnOnce() -> Fields) {
        if let Some(live) = &self.0 {
            let fields = fields();
            live.state().fields.merge(fields);
        }
    }

    /// Adds an item of a batch.
    pub fn item(&self, outcome: Outcome, fields: Fields) {
        if let Some(live) = &self.0 {
            live.state().items.push(Item { outcome, fields });
        }
    }

    /// Records a document that is about to leave.
    ///
    /// # Errors
    /// The document must not leave.
    pub async fn document(&self, name: &'static str, fields: Fields) -> Result<(), AuditError> {
        let Some(live) = &self.0 else { return Ok(()) };
        let event = {
            let mut state = live.state();
            state.documents += 1;
            live.event(&state, EventKind::Document { name, fields })
        };
        live.sink.record(event).await
    }

    /// Records the end of the call. Only the first end counts.
    ///
    /// # Errors
    /// The event was not kept.
    pub async fn finish(&self, outcome: Outcome) -> Result<(), AuditError> {
        let Some((live, event)) = self.end(outcome) else {
            return Ok(());
        };
        live.sink.record(event).await
    }

    /// As [`CallRecord::finish`], where nothing can be awaited: a sink that does not answer at once goes on in a task.
    pub fn finish_now(&self, outcome: Outcome) {
        let Some((live, event)) = self.end(outcome) else {
            return;
        };
        let sink = Arc::clone(&live.sink);
        let mut recording = Box::pin(async move {
            if let Err(error) = sink.record(event).await {
                tracing::error!(%error, "a call ended without its audit event");
            }
        });
        let mut context = Context::from_waker(Waker::noop());
        if recording.as_mut().poll(&mut context) == Poll::Pending
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(recording);
        }
    }

    /// The event of the call's end, the first time.
    fn end(&self, outcome: Outcome) -> Option<(&Live, Event)> {
        let live = self.0.as_ref()?;
        let mut state = live.state();
        if std::mem::replace(&mut state.finished, true) {
            return None;
        }
        let kind = EventKind::Call {
            outcome,
            fields: std::mem::take(&mut state.fields),
            items: std::mem::take(&mut state.items),
            documents: state.documents,
        };
        let event = live.event(&state, kind);
        Some((live, event))
    }
}

impl Live {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, state: &State, kind: EventKind) -> Event {
        Event {
            at: self.clock.now(),
            call: Arc::clone(&state.call),
            kind,
        }
    }
}

/// Ends the record of a call that is dropped before its end was recorded: its caller went away.
#[derive(Debug)]
pub struct Unfinished(pub Arc<CallRecord>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.finish_now(Outcome::Error {
            code: "Canceled",
            message: "the caller ended the call".to_owned(),
        });
    }
}
