//! The names of users and groups, remembered for a few seconds: the directory service behind them may be slow or far, and
//! the same few users call all the time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::unistd::{Gid, Group, Uid, User};
use spiffe::clock::Clock;

use super::process::Credentials;

/// A name that was given to another number is noticed after this time.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Over so many, all are forgotten.
const MANY: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Number {
    User(u32),
    Group(u32),
}

/// A name, or that there is none, and when that was found out.
type Known = (SystemTime, Option<String>);

/// Names by number, those without one among them.
#[derive(Debug)]
pub(super) struct Names {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Number, Known>>,
}

impl Names {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            known: Mutex::default(),
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

    /// The selector values of these credentials, asked anew. Blocks.
    pub(super) fn look_up(&self, credentials: &Credentials) -> Vec<String> {
        let looked_up = values(credentials, |number| {
            let name = name_of(number);
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MANY {
                known.clear();
            }
            known.insert(number, (self.clock.now(), name.clone()));
            Some(name)
        });
        looked_up.unwrap_or_default()
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

fn name_of(number: Number) -> Option<String> {
    let name = match number {
        Number::User(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten()?.name,
        Number::Group(gid) => Group::from_gid(Gid::from_raw(gid)).ok().flatten()?.name,
    };
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spiffe::clock::ManualClock;

    fn root() -> Credentials {
        Credentials {
            uid: 0,
            gid: 0,
            supplementary_gids: vec![0, 4_000_000_000],
        }
    }

    #[test]
    fn names_are_remembered_for_a_while_and_no_longer() {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + REMEMBERED);
        let names = Names::new(Arc::new(clock.clone()));
        assert_eq!(names.remembered(&root()), None);
        let looked_up = names.look_up(&root());
        assert_eq!(
            looked_up,
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
        assert_eq!(names.remembered(&root()), Some(looked_up));
        clock.advance(REMEMBERED);
        assert_eq!(names.remembered(&root()), None);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_fresh() {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + 2 * REMEMBERED);
        let names = Names::new(Arc::new(clock.clone()));
        names.look_up(&root());
        clock.set(SystemTime::UNIX_EPOCH);
        assert_eq!(names.remembered(&root()), None);
    }

    #[test]
    fn unknown_numbers_are_not_remembered_by_those_of_others() {
        let names = Names::new(Arc::new(ManualClock::new(SystemTime::UNIX_EPOCH)));
        names.look_up(&root());
        let other = Credentials { uid: 1, ..root() };
        assert_eq!(names.remembered(&other), None);
    }
}
