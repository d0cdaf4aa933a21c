//! What the writer's round trips say about the database: whether memory is current, and whether writes work.
//! Writes one line to the log for each change of state, not for each failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::DatastoreError;
use crate::registry::{Condition, RegistryWriter};

/// Belongs to the writer, whose registry it marks as current or not.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    /// Why writes fail although reads work.
    unwritable: Option<Arc<str>>,
    /// Since when something is wrong.
    since: Option<Instant>,
    /// Whether the log says that agents are refused.
    stale_is_logged: bool,
}

impl Monitor {
    /// Whether a write failed and none has worked since.
    pub(super) fn is_unwritable(&self) -> bool {
        self.unwritable.is_some()
    }

    /// A look at the database that began at `began` left memory current.
    pub(super) fn current(&mut self, registry: &mut RegistryWriter, began: Instant) {
        registry.confirm(began);
        let condition = match &self.unwritable {
            None => Condition::Well,
            Some(because) => Condition::Unwritable {
                because: Arc::clone(because),
            },
        };
        self.enter(registry, condition);
    }

    /// The database took a write.
    pub(super) fn writable(&mut self, registry: &mut RegistryWriter, began: Instant) {
        self.unwritable = None;
        self.current(registry, began);
    }

    /// A round trip failed. What one write did wrong says nothing about the database.
    pub(super) fn failed(&mut self, registry: &mut RegistryWriter, error: &DatastoreError) {
        if error.is_about_content() {
            return;
        }
        let because: Arc<str> = Arc::from(error.to_string());
        if error.is_about_writing() {
            self.unwritable = Some(Arc::clone(&because));
            self.enter(registry, Condition::Unwritable { because });
        } else {
            self.enter(registry, Condition::Away { because });
        }
    }

    /// Memory cannot follow the database, whatever the reason.
    pub(super) fn lost(&mut self, registry: &mut RegistryWriter, error: &DatastoreError) {
        let because = Arc::from(error.to_string());
        self.enter(registry, Condition::Away { because });
    }

    fn enter(&mut self, registry: &mut RegistryWriter, condition: Condition) {
        let former = registry.freshness().condition();
        let same = std::mem::discriminant(&former) == std::mem::discriminant(&condition);
        match (&condition, same) {
            (Condition::Well, false) => {
                let after = self
                    .since
                    .take()
                    .map_or(Duration::ZERO, |since| since.elapsed());
                tracing::info!(
                    after_seconds = after.as_secs(),
                    "the database answers and takes writes again"
                );
            }
            (Condition::Unwritable { because }, false) => {
                self.since.get_or_insert_with(Instant::now);
                tracing::error!(error = %because, "the database takes no writes; the server issues SVIDs but changes nothing");
            }
            (Condition::Away { because }, false) => {
                self.since.get_or_insert_with(Instant::now);
                tracing::error!(
                    error = %because,
                    "the database is away; agents are served from memory until max_attested_node_info_staleness is over"
                );
            }
            (_, true) => {}
        }
        if former != condition {
            registry.set_condition(condition);
        }
        let stale = registry.freshness().check().err();
        if let (Some(stale), false) = (&stale, self.stale_is_logged) {
            tracing::error!(error = %stale, "agents are refused until the database is back");
        }
        self.stale_is_logged = stale.is_some();
    }
}
