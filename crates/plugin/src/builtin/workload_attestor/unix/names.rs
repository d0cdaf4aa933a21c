//! The names of users and groups, remembered for a few seconds: the directory service behind them may be slow or far, and
//! the same few users call all the time.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use spiffe::clock::Clock;

use crate::blocking::{self, Interrupted, SingleFlight, Waiters, WorkLimits};
use crate::workload_attestor::credentials::Credentials;

/// A name that was given to another number is noticed after this time.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Over so many, all are forgotten.
const MANY: usize = 4096;
/// Look-ups that run at the same time, half of them for one user.
const LOOKED_UP_AT_ONCE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Number {
    User(u32),
    Group(u32),
}

/// A name, or that there is none, and when that was found out.
type Known = (SystemTime, Option<String>);

/// Where names come from. May be slow and may fail.
pub(super) trait Directory: Send + Sync + std::fmt::Debug {
    /// The name, or that there is none.
    fn name(&self, number: Number) -> io::Result<Option<String>>;
}

/// The system's user database (nsswitch.conf(5)).
#[derive(Debug)]
struct System;

/// What was looked up: the selector values, those without a name included, and why names may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LookedUp {
    pub(super) values: Vec<String>,
    pub(super) failed: Option<(io::ErrorKind, String)>,
}

/// Names by number, those without one among them.
#[derive(Debug)]
pub(super) struct Names {
    clock: Arc<dyn Clock>,
    directory: Arc<dyn Directory>,
    known: Mutex<HashMap<Number, Known>>,
    under_way: Arc<SingleFlight<Credentials, LookedUp>>,
    turns: WorkLimits,
}

impl Names {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self::of(clock, Arc::new(System))
    }

    pub(super) fn of(clock: Arc<dyn Clock>, directory: Arc<dyn Directory>) -> Self {
        Self {
            clock,
            directory,
            known: Mutex::default(),
            under_way: Arc::default(),
            turns: WorkLimits::new(LOOKED_UP_AT_ONCE, LOOKED_UP_AT_ONCE / 2),
        }
    }

    /// The selector values of these credentials if every name is fresh in memory. Waits for nothing.
    pub(super) fn remembered(&self, credentials: &Credentials) -> Option<Vec<String>> {
        let now = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        values(credentials, |number| {
            let (when, name) = known.get(&number)?;
            let fresh = now.duration_since(*when).is_ok_and(|age| age < REMEMBERED);
            fresh.then(|| name.clone())
        })
    }

    /// The selector values of these credentials from the directory, asked once for all who want the same.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        credentials: Credentials,
    ) -> Result<LookedUp, Interrupted> {
        let (this, asked) = (Arc::clone(self), credentials.clone());
        let work = |waiters: Waiters<LookedUp>| async move {
            let turn = this.turns.take(asked.uid).await?;
            if waiters.are_gone() {
                return Err(Interrupted);
            }
            blocking::run(turn, move || this.ask(&asked)).await
        };
        self.under_way.join(credentials, work).await
    }

    /// Blocks, for as long as the directory likes. What it fails to answer is not remembered.
    fn ask(&self, credentials: &Credentials) -> LookedUp {
        let failed = Cell::new(None);
        let values = values(credentials, |number| {
            let name = match self.directory.name(number) {
                Ok(name) => name.filter(|name| !name.is_empty()),
                Err(error) => {
                    failed.set(Some((error.kind(), error.to_string())));
                    return Some(None);
                }
            };
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MANY {
                known.clear();
            }
            known.insert(number, (self.clock.now(), name.clone()));
            Some(name)
        });
        LookedUp {
            values: values.unwrap_or_default(),
            failed: failed.into_inner(),
        }
    }
}

impl Directory for System {
    fn name(&self, number: Number) -> io::Result<Option<String>> {
        let found = match number {
            Number::User(uid) => {
                User::from_uid(Uid::from_raw(uid)).map(|found| found.map(|user| user.name))
            }
            Number::Group(gid) => {
                Group::from_gid(Gid::from_raw(gid)).map(|found| found.map(|group| group.name))
            }
        };
        match found {
            Ok(name) => Ok(name),
            // Different services say in these ways that there is no such user (getpwnam(3)).
            Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// SPIRE's order. A number without a name gives no name. `name` says nothing when it does not know.
fn values(
    credentials: &Credentials,
    name: impl Fn(Number) -> Option<Option<String>>,
) -> Option<Vec<String>> {
    let mut values = vec![format!("uid:{}", credentials.uid)];
    values.extend(name(Number::User(credentials.uid))?.map(|name| format!("user:{name}")));
    values.push(format!("gid:{}", credentials.gid));
    values.extend(name(Number::Group(credentials.gid))?.map(|name| format!("group:{name}")));
    for gid in &credentials.supplementary_gids {
        values.push(format!("supplementary_gid:{gid}"));
        values.extend(name(Number::Group(*gid))?.map(|name| format!("supplementary_group:{name}")));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use spiffe::clock::ManualClock;

    fn root() -> Credentials {
        Credentials {
            uid: 0,
            gid: 0,
            supplementary_gids: vec![0, 4_000_000_000],
            more_groups: false,
        }
    }

    #[tokio::test]
    async fn names_are_remembered_for_a_while_and_no_longer() {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + REMEMBERED);
        let names = Arc::new(Names::new(Arc::new(clock.clone())));
        assert_eq!(names.remembered(&root()), None);
        let looked_up = names.look_up(root()).await.unwrap();
        assert_eq!(looked_up.failed, None);
        assert_eq!(
            looked_up.values,
            [
                "uid:0",
                "user:root",
                "gid:0",
                "group:root",
                "supplementary_gid:0",
                "supplementary_group:root",
                "supplementary_gid:4000000000"
            ]
        );
        assert_eq!(names.remembered(&root()), Some(looked_up.values));
        clock.advance(REMEMBERED);
        assert_eq!(names.remembered(&root()), None);
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_makes_nothing_fresh() {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + 2 * REMEMBERED);
        let names = Arc::new(Names::new(Arc::new(clock.clone())));
        names.look_up(root()).await.unwrap();
        clock.set(SystemTime::UNIX_EPOCH);
        assert_eq!(names.remembered(&root()), None);
    }

    #[tokio::test]
    async fn unknown_numbers_are_not_remembered_by_those_of_others() {
        let names = Arc::new(Names::new(Arc::new(ManualClock::new(
            SystemTime::UNIX_EPOCH,
        ))));
        names.look_up(root()).await.unwrap();
        let other = Credentials { uid: 1, ..root() };
        assert_eq!(names.remembered(&other), None);
    }

    /// Knows users, fails for groups while it is down, and counts.
    #[derive(Debug, Default)]
    struct Half {
        up: AtomicBool,
        asked: AtomicUsize,
    }

    impl Directory for Half {
        fn name(&self, number: Number) -> io::Result<Option<String>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match number {
                Number::Group(_) if !self.up.load(Ordering::Relaxed) => {
                    Err(io::Error::from_raw_os_error(5))
                }
                number => Ok(Some(format!("{number:?}"))),
            }
        }
    }

    #[tokio::test]
    async fn a_directory_that_fails_does_not_say_that_there_is_no_name() {
        let directory = Arc::new(Half::default());
        let clock = Arc::new(ManualClock::new(SystemTime::UNIX_EPOCH));
        let names = Arc::new(Names::of(clock, Arc::<Half>::clone(&directory)));
        let failed = names.look_up(root()).await.unwrap();
        assert!(failed.failed.is_some());
        assert_eq!(
            failed.values,
            [
                "uid:0",
                "user:User(0)",
                "gid:0",
                "supplementary_gid:0",
                "supplementary_gid:4000000000"
            ]
        );
        assert_eq!(names.remembered(&root()), None);
        directory.up.store(true, Ordering::Relaxed);
        let found = names.look_up(root()).await.unwrap();
        assert_eq!(found.failed, None);
        assert!(found.values.contains(&"group:Group(0)".to_owned()));
    }

    #[tokio::test]
    async fn a_hundred_callers_of_one_user_are_one_question() {
        let directory = Arc::new(Half::default());
        directory.up.store(true, Ordering::Relaxed);
        let clock = Arc::new(ManualClock::new(SystemTime::UNIX_EPOCH));
        let names = Arc::new(Names::of(clock, Arc::<Half>::clone(&directory)));
        // None of them has been polled when the first asks: all join it.
        let all: Vec<_> = (0..100)
            .map(|_| {
                let names = Arc::clone(&names);
                async move { names.look_up(root()).await.unwrap() }
            })
            .collect();
        let mut asking = tokio::task::JoinSet::new();
        for one in all {
            asking.spawn(one);
        }
        assert_eq!(asking.join_all().await.len(), 100);
        assert_eq!(directory.asked.load(Ordering::Relaxed), 4);
    }
}
