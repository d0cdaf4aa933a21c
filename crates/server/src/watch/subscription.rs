//! What one watching agent still has to be sent, and the index that finds the agents a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;
use tokio::sync::Notify;

use crate::registry::Cursor;

use super::affected::{MAX_NAMED, Touched};

/// Streams that one agent may hold; the oldest ends when it opens another. It needs one, and a second while it renews.
const MAX_STREAMS: usize = 4;

/// What has changed for one agent since its watcher last looked.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Everything up to here is contained.
    pub(super) cursor: Cursor,
    /// The entries to look at.
    pub(super) entries: Vec<Arc<[Arc<str>]>>,
    named: usize,
    /// The bundles to look at.
    pub(super) bundles: BTreeSet<TrustDomain>,
    /// Too much has changed to name: the agent is sent the whole list.
    pub(super) reset: bool,
    /// The agent's own record has changed.
    pub(super) agent: bool,
    /// The agent holds a newer stream.
    pub(super) replaced: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.bundles.is_empty()
            && !self.reset
            && !self.agent
            && !self.replaced
    }
}

/// One watcher's place among the subscriptions.
#[derive(Debug)]
pub(super) struct Subscription {
    state: Mutex<SubscriptionState>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct SubscriptionState {
    pending: Pending,
    /// The foreign trust domains whose bundles the agent is sent.
    federated: BTreeSet<TrustDomain>,
}

impl Subscription {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Waits until something is pending, and takes it. The wake-up is registered before the state is read, so that none is
    /// lost in between.
    pub(super) async fn pending(&self) -> Pending {
        loop {
            let woken = self.wake.notified();
            {
                let mut state = self.lock();
                if !state.pending.is_empty() {
                    return std::mem::take(&mut state.pending);
                }
            }
            woken.await;
        }
    }

    /// Says which foreign bundles the agent is sent. What changes of them after this is pending.
    pub(super) fn follow_bundles(&self, federated: BTreeSet<TrustDomain>) {
        self.lock().federated = federated;
    }

    /// Whether the agent holds newer streams, so that this one is to end.
    pub(super) fn is_replaced(&self) -> bool {
        self.lock().pending.replaced
    }

    pub(super) fn add_entries(&self, touched: &Touched) {
        let mut state = self.lock();
        let pending = &mut state.pending;
        match touched {
            _ if pending.reset => {}
            Touched::Entries(ids) if pending.named + ids.len() <= MAX_NAMED => {
                pending.named += ids.len();
                pending.entries.push(Arc::clone(ids));
            }
            Touched::Entries(_) | Touched::TooMany => {
                pending.reset = true;
                pending.entries = Vec::new();
            }
        }
    }

    /// Returns whether the agent follows this bundle.
    pub(super) fn add_bundle(&self, trust_domain: &TrustDomain, own: bool) -> bool {
        let mut state = self.lock();
        let follows = own || state.federated.contains(trust_domain);
        if follows {
            state.pending.bundles.insert(trust_domain.clone());
        }
        follows
    }

    pub(super) fn add_agent_change(&self, reset: bool) {
        let mut state = self.lock();
        state.pending.agent = true;
        state.pending.reset |= reset;
    }

    fn replace(&self) {
        self.lock().pending.replaced = true;
        self.wake.notify_one();
    }

    /// Ends a batch: what is pending now reaches up to `cursor`. Wakes the watcher if anything is.
    ///
    /// Until then a watcher that wakes for another reason takes a part of the batch under the revision before it, so
    /// that no cursor ever promises more than was sent.
    pub(super) fn seal(&self, cursor: Cursor) {
        let mut state = self.lock();
        if !state.pending.is_empty() {
            state.pending.cursor = cursor;
            drop(state);
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, SubscriptionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All subscriptions, found by their agent and by the selectors of its node.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    next: u64,
    all: BTreeMap<u64, Member>,
    by_agent: HashMap<SpiffeId, Vec<u64>>,
    by_selector: HashMap<Selector, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Member {
    agent: SpiffeId,
    selectors: SelectorSet,
    subscription: Arc<Subscription>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Adds a subscription of `agent`, whose node has these selectors, and returns it with its number.
    pub(super) fn add(
        &mut self,
        agent: SpiffeId,
        selectors: SelectorSet,
    ) -> (u64, Arc<Subscription>) {
        let of_agent = self.by_agent.entry(agent.clone()).or_default();
        if of_agent.len() >= MAX_STREAMS
            && let Some(oldest) = of_agent.first().and_then(|number| self.all.get(number))
        {
            oldest.subscription.replace();
        }
        let number = self.next;
        self.next += 1;
        of_agent.push(number);
        let subscription = Arc::new(Subscription::new());
        let member = Member {
            agent,
            selectors,
            subscription: Arc::clone(&subscription),
        };
        self.index(number, &member.selectors);
        self.all.insert(number, member);
        (number, subscription)
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(member) = self.all.remove(&number) else {
            return;
        };
        self.unindex(number, &member.selectors);
        if let Some(of_agent) = self.by_agent.get_mut(&member.agent) {
            of_agent.retain(|other| *other != number);
            if of_agent.is_empty() {
                self.by_agent.remove(&member.agent);
            }
        }
    }

    /// The agent's node has other selectors now.
    pub(super) fn set_selectors(&mut self, agent: &SpiffeId, selectors: &SelectorSet) {
        for number in self.by_agent.get(agent).cloned().unwrap_or_default() {
            let Some(member) = self.all.get_mut(&number) else {
                continue;
            };
            let former = std::mem::replace(&mut member.selectors, selectors.clone());
            self.unindex(number, &former);
            self.index(number, selectors);
        }
    }

    fn index(&mut self, number: u64, selectors: &SelectorSet) {
        for selector in selectors.iter() {
            let with_selector = self.by_selector.entry(selector.clone()).or_default();
            with_selector.insert(number);
        }
    }

    fn unindex(&mut self, number: u64, selectors: &SelectorSet) {
        for selector in selectors.iter() {
            if let Some(with_selector) = self.by_selector.get_mut(selector) {
                with_selector.remove(&number);
                if with_selector.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
    }

    /// The agents that have a subscription.
    pub(super) fn agents(&self) -> Vec<SpiffeId> {
        self.all
            .values()
            .map(|member| member.agent.clone())
            .collect()
    }

    pub(super) fn everyone(&self) -> impl Iterator<Item = (u64, &Arc<Subscription>)> {
        self.all
            .iter()
            .map(|(number, member)| (*number, &member.subscription))
    }

    pub(super) fn of_agent(
        &self,
        agent: &SpiffeId,
    ) -> impl Iterator<Item = (u64, &Arc<Subscription>)> {
        let numbers = self.by_agent.get(agent).into_iter().flatten();
        numbers.filter_map(|number| Some((*number, &self.all.get(number)?.subscription)))
    }

    /// The subscriptions of nodes that have all of these selectors; of none when there are no selectors.
    pub(super) fn with_selectors(
        &self,
        wanted: &SelectorSet,
    ) -> impl Iterator<Item = (u64, &Arc<Subscription>)> {
        // An agent must have them all, so the one that the fewest agents have is enough to look at.
        let rarest = wanted
            .iter()
            .map(|selector| self.by_selector.get(selector))
            .min_by_key(|with_selector| with_selector.map_or(0, BTreeSet::len))
            .flatten();
        rarest.into_iter().flatten().filter_map(move |number| {
            let member = self.all.get(number)?;
            wanted
                .is_subset_of(&member.selectors)
                .then_some((*number, &member.subscription))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org/spire/agent/{name}")).unwrap()
    }

    fn set(selectors: &[&str]) -> SelectorSet {
        let parse = |text: &&str| Selector::new("test", text).unwrap();
        SelectorSet::from(selectors.iter().map(parse).collect::<Vec<_>>())
    }

    fn numbers<'a>(found: impl Iterator<Item = (u64, &'a Arc<Subscription>)>) -> Vec<u64> {
        found.map(|(number, _)| number).collect()
    }

    #[test]
    fn finds_the_nodes_that_have_every_selector_and_no_others() {
        let mut all = Subscriptions::default();
        let (one, _) = all.add(agent("one"), set(&["a", "b"]));
        let (two, _) = all.add(agent("two"), set(&["a"]));
        assert_eq!(numbers(all.with_selectors(&set(&["a"]))), [one, two]);
        assert_eq!(numbers(all.with_selectors(&set(&["a", "b"]))), [one]);
        assert!(numbers(all.with_selectors(&set(&["a", "c"]))).is_empty());
        assert!(numbers(all.with_selectors(&set(&[]))).is_empty());
        all.set_selectors(&agent("two"), &set(&["b", "c"]));
        assert_eq!(numbers(all.with_selectors(&set(&["b"]))), [one, two]);
        assert_eq!(numbers(all.with_selectors(&set(&["a"]))), [one]);
        all.remove(one);
        all.remove(two);
        assert!(numbers(all.everyone()).is_empty() && all.by_selector.is_empty());
        assert!(all.by_agent.is_empty());
    }

    #[tokio::test]
    async fn ends_the_oldest_of_too_many_streams_of_one_agent() {
        let mut all = Subscriptions::default();
        let (_, first) = all.add(agent("one"), SelectorSet::default());
        for _ in 1..MAX_STREAMS {
            all.add(agent("one"), SelectorSet::default());
        }
        all.add(agent("other"), SelectorSet::default());
        first.seal(Cursor::new(7, 1));
        assert!(first.lock().pending.is_empty());
        all.add(agent("one"), SelectorSet::default());
        assert!(first.pending().await.replaced);
    }

    #[test]
    fn names_a_bounded_number_of_entries() {
        let subscription = Subscription::new();
        let ids: Arc<[Arc<str>]> = vec![Arc::from("e"); MAX_NAMED].into();
        subscription.add_entries(&Touched::Entries(Arc::clone(&ids)));
        assert!(!subscription.lock().pending.reset);
        subscription.add_entries(&Touched::Entries(ids));
        let state = subscription.lock();
        assert!(state.pending.reset && state.pending.entries.is_empty());
    }

    #[test]
    fn is_notified_of_the_bundles_it_follows_alone() {
        let subscription = Subscription::new();
        let far = TrustDomain::parse("far.example").unwrap();
        let near = TrustDomain::parse("example.org").unwrap();
        assert!(!subscription.add_bundle(&far, false));
        assert!(subscription.add_bundle(&near, true));
        subscription.follow_bundles([far.clone()].into());
        assert!(subscription.add_bundle(&far, false));
        assert_eq!(subscription.lock().pending.bundles, [near, far].into());
    }
}
