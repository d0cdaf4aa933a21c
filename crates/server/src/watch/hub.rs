//! One reader of the change log for all watchers: finds whom each change concerns and leaves word in their mailboxes, so
//! that a change costs the agents that it concerns and not all that there are.
//!
//! Word may be left too often, never too seldom: what a watcher makes of it is decided by the registry again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use tokio::sync::Notify;

use super::view::has_children;
use crate::registry::{Change, Kind, Object, Registry};
use daemon::tasks::Shutdown;

/// Steps from an entry up to the agents before everybody is told to look.
const CLIMB_LIMIT: usize = 256;
/// Entries named in one mailbox before its owner is told to look at all of them.
const MAX_NAMED: usize = 4_096;

/// What has changed for one watcher since it last looked.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Everything up to this revision is contained.
    pub(super) revision: u64,
    pub(super) entries: Vec<Arc<str>>,
    pub(super) bundles: bool,
    /// Any of its entries may have changed.
    pub(super) everything: bool,
    /// Its own row has changed.
    pub(super) standing: bool,
}

impl News {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.bundles && !self.everything && !self.standing
    }
}

/// Where the hub leaves word for one watcher.
#[derive(Debug)]
pub(super) struct Mailbox {
    agent: SpiffeId,
    news: Mutex<News>,
    wake: Notify,
}

impl Mailbox {
    /// Returns when there is news.
    pub(super) async fn news(&self) -> News {
        loop {
            let woken = self.wake.notified();
            let news = std::mem::take(&mut *self.lock());
            if !news.is_empty() {
                return news;
            }
            woken.await;
        }
    }

    fn leave(&self, word: &Word) {
        let mut news = self.lock();
        match word {
            Word::Entry(_) if news.everything => {}
            Word::Entry(id) if news.entries.len() < MAX_NAMED => news.entries.push(Arc::clone(id)),
            Word::Entry(_) | Word::Everything => {
                news.everything = true;
                news.entries = Vec::new();
            }
            Word::Bundles => news.bundles = true,
            Word::Standing => news.standing = true,
        }
    }

    /// Marks how far the news go, and wakes the owner if there are any.
    fn close(&self, revision: u64) {
        let mut news = self.lock();
        if !news.is_empty() {
            news.revision = revision;
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Word {
    Entry(Arc<str>),
    Everything,
    Bundles,
    Standing,
}

/// The mailboxes, and the task that fills them.
#[derive(Debug)]
pub(crate) struct Hub {
    registry: Arc<Registry>,
    server: SpiffeId,
    mailboxes: Mutex<HashMap<SpiffeId, Vec<Weak<Mailbox>>>>,
}

/// Whom the changes of one batch below one parent concern.
type Routes = HashMap<SpiffeId, Arc<[Arc<Mailbox>]>>;

impl Hub {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        let server = SpiffeId::server(registry.trust_domain());
        Self {
            registry,
            server,
            mailboxes: Mutex::new(HashMap::new()),
        }
    }

    /// Opens a mailbox. Whoever looks at the registry after this misses nothing.
    pub(super) fn join(&self, agent: SpiffeId) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox {
            agent: agent.clone(),
            news: Mutex::default(),
            wake: Notify::new(),
        });
        let mut mailboxes = self.lock();
        let of_agent = mailboxes.entry(agent).or_default();
        of_agent.retain(|mailbox| mailbox.strong_count() > 0);
        of_agent.push(Arc::downgrade(&mailbox));
        mailbox
    }

    /// Follows the registry until the server stops.
    pub(crate) async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        let mut revisions = self.registry.subscribe();
        let mut seen = self.registry.revision();
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                changed = revisions.changed() => if changed.is_err() { return },
            }
            revisions.mark_unchanged();
            seen = self.advance(seen);
        }
    }

    fn advance(&self, seen: u64) -> u64 {
        let everybody = self.everybody();
        let Some(changes) = self.registry.changes_since(seen) else {
            // Read before the word is left: those who look afterwards see at least this.
            let revision = self.registry.revision();
            for mailbox in &everybody {
                mailbox.leave(&Word::Everything);
                mailbox.leave(&Word::Bundles);
                mailbox.leave(&Word::Standing);
                mailbox.close(revision);
            }
            return revision;
        };
        let mut routes = Routes::new();
        for change in &changes {
            self.route(change, &everybody, &mut routes);
        }
        let revision = changes.last().map_or(seen, |change| change.revision);
        for mailbox in &everybody {
            mailbox.close(revision);
        }
        revision
    }

    fn route(&self, change: &Change, everybody: &[Arc<Mailbox>], routes: &mut Routes) {
        match change.kind {
            Kind::Bundle => everybody
                .iter()
                .for_each(|mailbox| mailbox.leave(&Word::Bundles)),
            Kind::Agent => {
                let same = selectors(change.old.as_ref()) == selectors(change.new.as_ref());
                let word = if same {
                    Word::Standing
                } else {
                    Word::Everything
                };
                let concerned =
                    |mailbox: &&Arc<Mailbox>| mailbox.agent.as_str() == change.key.as_ref();
                for mailbox in everybody.iter().filter(concerned) {
                    mailbox.leave(&word);
                }
            }
            Kind::Entry => {
                for side in [&change.old, &change.new] {
                    if let Some(Object::Entry(entry)) = side {
                        self.route_entry(&change.key, entry, everybody, routes);
                    }
                }
            }
            _ => {}
        }
    }

    fn route_entry(
        &self,
        id: &Arc<str>,
        entry: &Entry,
        everybody: &[Arc<Mailbox>],
        routes: &mut Routes,
    ) {
        if entry.parent_id == self.server {
            // A node alias: whoever has its selectors has what hangs below it.
            for mailbox in self.holders(entry, everybody) {
                mailbox.leave(&Word::Everything);
            }
            return;
        }
        let route = routes
            .entry(entry.parent_id.clone())
            .or_insert_with(|| self.above(&entry.parent_id, everybody).into());
        if route.is_empty() {
            return;
        }
        let word = if has_children(&self.registry, &entry.spiffe_id) {
            Word::Everything
        } else {
            Word::Entry(Arc::clone(id))
        };
        for mailbox in route.iter() {
            mailbox.leave(&word);
        }
    }

    /// The watchers among the agents above `parent`, itself included, and those of the aliases above it.
    fn above(&self, parent: &SpiffeId, everybody: &[Arc<Mailbox>]) -> Vec<Arc<Mailbox>> {
        let (mut seen, mut stack) = (Vec::new(), vec![parent.clone()]);
        let mut found: Vec<Arc<Mailbox>> = Vec::new();
        while let Some(id) = stack.pop() {
            if seen.contains(&id) {
                continue;
            }
            if seen.len() >= CLIMB_LIMIT {
                return everybody.to_vec();
            }
            found.extend(self.of_agent(&id));
            for entry in self.registry.entries_for_spiffe_id(&id) {
                if entry.parent_id == self.server {
                    found.extend(self.holders(&entry, everybody).cloned());
                } else {
                    stack.push(entry.parent_id.clone());
                }
            }
            seen.push(id);
        }
        found
    }

    /// The watchers whose nodes have all of the alias's selectors.
    fn holders<'a>(
        &'a self,
        alias: &'a Entry,
        everybody: &'a [Arc<Mailbox>],
    ) -> impl Iterator<Item = &'a Arc<Mailbox>> {
        everybody.iter().filter(|mailbox| {
            let agent = self.registry.agent(&mailbox.agent);
            agent.is_some_and(|agent| alias.selectors.is_subset_of(&agent.selectors))
        })
    }

    fn of_agent(&self, id: &SpiffeId) -> Vec<Arc<Mailbox>> {
        let mailboxes = self.lock();
        let of_agent = mailboxes.get(id).into_iter().flatten();
        of_agent.filter_map(Weak::upgrade).collect()
    }

    /// Everybody who still listens; the places of others are cleared.
    fn everybody(&self) -> Vec<Arc<Mailbox>> {
        let mut mailboxes = self.lock();
        let mut living = Vec::with_capacity(mailboxes.len());
        mailboxes.retain(|_, of_agent| {
            of_agent.retain(|mailbox| {
                mailbox
                    .upgrade()
                    .map(|mailbox| living.push(mailbox))
                    .is_some()
            });
            !of_agent.is_empty()
        });
        living
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SpiffeId, Vec<Weak<Mailbox>>>> {
        self.mailboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn selectors(side: Option<&Object>) -> Option<&spiffe::selector::SelectorSet> {
    match side {
        Some(Object::Agent(agent)) => Some(&agent.selectors),
        _ => None,
    }
}
