//! What others derive from a value, made once and kept beside it: one value of each type.
//!
//! The cache shares one update among all streams of a set, and each API encodes it in a form of its own. Here they keep
//! that form, so that the cache need not know any of them.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;

/// A list of derived values that only grows, so that reading takes no lock. There are as many as there are APIs.
#[derive(Default)]
pub(crate) struct Memo {
    first: OnceLock<Box<Node>>,
}

struct Node {
    value: Box<dyn Any + Send + Sync>,
    next: OnceLock<Box<Self>>,
}

impl Memo {
    /// The value of type `T`, its default at first.
    pub(crate) fn of<T: Any + Default + Send + Sync>(&self) -> &T {
        let mut place = &self.first;
        loop {
            let node = place.get_or_init(|| {
                Box::new(Node {
                    value: Box::<T>::default(),
                    next: OnceLock::new(),
                })
            });
            if let Some(value) = node.value.downcast_ref() {
                return value;
            }
            place = &node.next;
        }
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    #[test]
    fn each_type_has_one_value_that_stays() {
        let memo = Memo::default();
        let (numbers, texts): (&OnceLock<u8>, &OnceLock<String>) = (memo.of(), memo.of());
        numbers.set(7).unwrap();
        texts.set("seven".to_owned()).unwrap();
        assert_eq!(memo.of::<OnceLock<u8>>().get(), Some(&7));
        assert_eq!(memo.of::<OnceLock<String>>().get().unwrap(), "seven");
    }
}
