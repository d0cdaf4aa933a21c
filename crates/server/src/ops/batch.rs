//! Batches: each item has an outcome of its own, in the order of the request, and the audit trail names each.

use crate::audit::{Fields, Outcome};
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

/// The items of a request as far as they could be read. One that could not keeps its refusal and costs nothing more.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    good: Vec<T>,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    read: Result<(), OpError>,
    details: Fields,
}

impl<T> Batch<T> {
    /// Reads each item. `details` is what the audit trail says of it, collected only when somebody reads the trail.
    pub(crate) fn read<W>(
        caller: &Caller,
        wire: &[W],
        read: impl Fn(&W) -> Result<T, OpError>,
        details: impl Fn(&W) -> Fields,
    ) -> Self {
        let mut good = Vec::with_capacity(wire.len());
        let items = wire.iter().map(|item| Item {
            details: if caller.record.is_enabled() {
                details(item)
            } else {
                Fields::new()
            },
            read: read(item).map(|item| good.push(item)),
        });
        let items = items.collect();
        Self { good, items }
    }

    /// Takes the items that could be read, to be handed to one write.
    pub(crate) fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.good)
    }

    /// Joins the outcomes of the items that could be read with the refusals of the others, and records each.
    pub(crate) fn conclude<R, E>(
        self,
        caller: &Caller,
        written: Vec<Result<R, E>>,
    ) -> Vec<Result<R, E>>
    where
        E: From<OpError>,
        for<'e> Outcome: From<&'e E>,
    {
        let mut written = written.into_iter();
        let outcomes = self.items.into_iter().map(|item| {
            let outcome = match item.read {
                Err(refused) => Err(refused.into()),
                Ok(()) => written.next().unwrap_or_else(|| {
                    let missing = "the datastore gave no outcome for this item";
                    Err(refused(Kind::Internal, missing).into())
                }),
            };
            caller.item(outcome.as_ref().map(|_| ()), || item.details);
            outcome
        });
        outcomes.collect()
    }
}
