//! The connections of one endpoint: counted, capped, all awaited at the end. At the cap the longest-held one of a stranger makes
//! room, or else an idle one, and a source that holds its share of strangers' connections makes room among its own: so no number
//! of connections that cost nothing keeps anybody out.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::source::Source;

/// Connections beyond the cap that have been ended and are not gone yet.
const LEAVING: usize = 64;
/// Busy lines that are passed over for an idle one.
const PASSED_OVER: usize = 64;

/// One accepted connection as its endpoint sees it.
#[derive(Debug)]
pub(super) struct Line {
    calls: AtomicUsize,
    ended: AtomicBool,
    close: watch::Sender<bool>,
    /// Where it counts until the peer is known.
    counted: Vec<Arc<AtomicUsize>>,
    stranger: AtomicBool,
}

/// Counts a call for as long as it lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Line>);

impl Line {
    fn new(counted: Vec<Arc<AtomicUsize>>) -> Arc<Self> {
        for count in &counted {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            close: watch::Sender::new(false),
            stranger: AtomicBool::new(!counted.is_empty()),
            counted,
        })
    }

    /// The peer has shown who it is: it no longer counts as a stranger.
    pub(super) fn known(&self) {
        if self.stranger.swap(false, Ordering::Relaxed) {
            for count in &self.counted {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn end(&self) {
        self.known();
        self.ended.store(true, Ordering::Relaxed);
    }

    fn is_strangers(&self) -> bool {
        self.stranger.load(Ordering::Relaxed)
    }

    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub(super) fn close(&self) {
        self.close.send_replace(true);
    }

    /// True once the connection is to end.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.close.subscribe()
    }

    /// Returns when the connection is to end.
    pub(super) async fn closed(&self) {
        drop(
            self.close
                .subscribe()
                .wait_for(|closing| *closing)
                .await
                .map(|_| ()),
        );
    }

    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    fn is_leaving(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || *self.close.borrow()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The running connections.
#[derive(Debug)]
pub(super) struct Lines {
    running: JoinSet<()>,
    known: VecDeque<Arc<Line>>,
    /// In the order they came; those that became known since move over when they are met.
    strangers: VecDeque<Arc<Line>>,
    strangers_count: Arc<AtomicUsize>,
    sources: HashMap<Source, Held>,
    most: usize,
    most_strangers: usize,
    share: usize,
}

/// The lines of strangers from one source.
#[derive(Debug, Default)]
struct Held {
    count: Arc<AtomicUsize>,
    lines: VecDeque<Arc<Line>>,
}

impl Lines {
    pub(super) fn at_most(most: usize) -> Self {
        Self {
            running: JoinSet::new(),
            known: VecDeque::new(),
            strangers: VecDeque::new(),
            strangers_count: Arc::default(),
            sources: HashMap::new(),
            most,
            most_strangers: most,
            share: most,
        }
    }

    /// Lets strangers hold at most `most` lines, and those of one source `share` of them.
    pub(super) fn with_strangers(self, most: usize, share: usize) -> Self {
        Self {
            most_strangers: most,
            share,
            ..self
        }
    }

    /// Runs what `serve` makes of a new line. At the cap another line is ended for it; returns false when all are known peers'
    /// and busy. A line with a `source` is a stranger's until [`Line::known`].
    pub(super) async fn spawn<F>(
        &mut self,
        source: Option<Source>,
        serve: impl FnOnce(Arc<Line>) -> F,
    ) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.running.try_join_next().is_some() {}
        self.forget();
        let counted = match source {
            Some(source) => self.admit_stranger(source),
            None => Vec::new(),
        };
        if self.running.len() >= self.most {
            if !self.make_room() {
                return false;
            }
            // It ends at once, yet those that did not get their turn to must not pile up.
            while self.running.len() >= self.most.saturating_add(LEAVING) {
                self.running.join_next().await;
            }
        }
        let line = Line::new(counted);
        match source {
            Some(source) => {
                self.strangers.push_back(Arc::clone(&line));
                let held = self.sources.entry(source).or_default();
                held.lines.push_back(Arc::clone(&line));
            }
            None => self.known.push_back(Arc::clone(&line)),
        }
        let serving = serve(Arc::clone(&line));
        self.running.spawn(async move {
            serving.await;
            line.end();
        });
        true
    }

    /// Lets go of what ended, whenever that is most of what is remembered.
    fn forget(&mut self) {
        let enough = self.running.len().saturating_mul(2).saturating_add(64);
        let running = |line: &Arc<Line>| !line.ended.load(Ordering::Relaxed);
        if self.known.len() > enough {
            self.known.retain(running);
        }
        if self.strangers.len() > enough {
            self.strangers.retain(running);
        }
        if self.sources.len() > enough {
            self.sources
                .retain(|_, held| held.count.load(Ordering::Relaxed) > 0);
        }
    }

    /// Ends a line of the source when that has all it may have, or else of any stranger when they have. Returns where to count.
    fn admit_stranger(&mut self, source: Source) -> Vec<Arc<AtomicUsize>> {
        let share = self.share;
        let held = self.sources.entry(source).or_default();
        if held.lines.len() > share.saturating_mul(2) {
            held.lines
                .retain(|line| line.is_strangers() && !line.is_leaving());
        }
        if held.count.load(Ordering::Relaxed) >= share {
            end_one(&mut held.lines, drop);
        }
        let counted = vec![Arc::clone(&held.count), Arc::clone(&self.strangers_count)];
        if self.strangers_count.load(Ordering::Relaxed) >= self.most_strangers {
            let known = &mut self.known;
            end_one(&mut self.strangers, |line| known.push_back(line));
        }
        counted
    }

    /// Asks a line to end: a stranger's, or else one of a known peer that is idle.
    fn make_room(&mut self) -> bool {
        let known = &mut self.known;
        if end_one(&mut self.strangers, |line| known.push_back(line)) {
            return true;
        }
        for _ in 0..PASSED_OVER {
            let Some(line) = next_staying(&mut self.known) else {
                return false;
            };
            if !line.has_calls() {
                line.close();
                return true;
            }
            self.known.push_back(line);
        }
        false
    }

    pub(super) async fn all_ended(mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

/// Ends the longest-held line of a stranger, an idle one if there is one soon. Lines that became known go to `keep`.
fn end_one(lines: &mut VecDeque<Arc<Line>>, mut keep: impl FnMut(Arc<Line>)) -> bool {
    let mut passed_over = VecDeque::new();
    let mut ended = false;
    while let Some(line) = next_staying(lines) {
        if !line.is_strangers() {
            keep(line);
        } else if !line.has_calls() {
            line.close();
            line.known();
            ended = true;
            break;
        } else {
            passed_over.push_back(line);
            if passed_over.len() == PASSED_OVER {
                break;
            }
        }
    }
    if !ended && let Some(oldest) = passed_over.pop_front() {
        oldest.close();
        oldest.known();
        ended = true;
    }
    // Behind all others: each is passed over once in a round.
    lines.append(&mut passed_over);
    ended
}

fn next_staying(lines: &mut VecDeque<Arc<Line>>) -> Option<Arc<Line>> {
    while let Some(line) = lines.pop_front() {
        if !line.is_leaving() {
            return Some(line);
        }
    }
    None
}

/// How many connections the limit of open files leaves room for, after raising it as far as this process may.
pub(crate) fn room_for_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    // A quarter is kept for the database, files and the other endpoints.
    usize::try_from(limit - limit / 4).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    fn source(address: &str) -> Option<Source> {
        Some(Source::of(address.parse().unwrap()))
    }

    /// A line that says its name when it is asked to end.
    fn named(
        name: u32,
        told: &UnboundedSender<u32>,
    ) -> impl FnOnce(Arc<Line>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + use<> {
        let told = told.clone();
        move |line| {
            Box::pin(async move {
                line.closed().await;
                told.send(name).unwrap();
            })
        }
    }

    fn events() -> (UnboundedSender<u32>, UnboundedReceiver<u32>) {
        unbounded_channel()
    }

    #[tokio::test]
    async fn closes_the_oldest_idle_line_for_a_new_one() {
        let mut lines = Lines::at_most(2);
        let (told, mut events) = events();
        for name in 1..=3 {
            assert!(lines.spawn(None, named(name, &told)).await);
        }
        assert_eq!(events.recv().await, Some(1));
    }

    #[tokio::test]
    async fn refuses_a_line_when_all_are_busy() {
        let mut lines = Lines::at_most(1);
        let serve = |line: Arc<Line>| {
            let busy = line.busy();
            async move {
                std::future::pending::<()>().await;
                drop(busy);
            }
        };
        assert!(lines.spawn(None, serve).await);
        assert!(!lines.spawn(None, |_| std::future::ready(())).await);
    }

    #[tokio::test]
    async fn closes_a_busy_line_of_a_stranger_before_an_idle_one_of_a_known_peer() {
        let mut lines = Lines::at_most(2);
        let (told, mut events) = events();
        let friend = |line: Arc<Line>| {
            line.known();
            named(1, &told)(line)
        };
        assert!(lines.spawn(source("192.0.2.1"), friend).await);
        let hanging = |line: Arc<Line>| {
            let busy = line.busy();
            let serving = named(2, &told)(line);
            async move {
                serving.await;
                drop(busy);
            }
        };
        assert!(lines.spawn(source("192.0.2.2"), hanging).await);
        assert!(lines.spawn(source("192.0.2.3"), named(3, &told)).await);
        assert_eq!(events.recv().await, Some(2));
    }

    #[tokio::test]
    async fn lets_a_source_crowd_out_only_itself() {
        let mut lines = Lines::at_most(100).with_strangers(100, 2);
        let (told, mut events) = events();
        assert!(lines.spawn(source("192.0.2.1"), named(0, &told)).await);
        // A network of IPv6 is one source.
        for name in 1..=4 {
            let address = format!("2001:db8::{name}");
            assert!(lines.spawn(source(&address), named(name, &told)).await);
        }
        assert_eq!(events.recv().await, Some(1));
        assert_eq!(events.recv().await, Some(2));
        tokio::task::yield_now().await;
        events.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn lets_strangers_together_hold_no_more_than_their_part() {
        let mut lines = Lines::at_most(100).with_strangers(3, 2);
        let (told, mut events) = events();
        for name in 1..=5 {
            let address = format!("192.0.2.{name}");
            assert!(lines.spawn(source(&address), named(name, &told)).await);
        }
        assert_eq!(events.recv().await, Some(1));
        assert_eq!(events.recv().await, Some(2));
        tokio::task::yield_now().await;
        events.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn counts_no_known_peer_in_the_share_of_its_source() {
        let mut lines = Lines::at_most(100).with_strangers(100, 2);
        let (told, mut events) = events();
        for name in 1..=50 {
            let serve = |line: Arc<Line>| {
                line.known();
                named(name, &told)(line)
            };
            assert!(lines.spawn(source("192.0.2.1"), serve).await);
        }
        tokio::task::yield_now().await;
        events.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn remembers_no_more_lines_than_there_are() {
        let mut lines = Lines::at_most(100).with_strangers(100, 10);
        for host in 0..2_000_u32 {
            let address = std::net::IpAddr::from(host.to_be_bytes());
            let serve = |_| std::future::ready(());
            assert!(lines.spawn(Some(Source::of(address)), serve).await);
            tokio::task::yield_now().await;
        }
        assert!(lines.strangers.len() < 300, "{}", lines.strangers.len());
        assert!(lines.sources.len() < 300, "{}", lines.sources.len());
    }
}
