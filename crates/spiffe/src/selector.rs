//! Selectors: the `type:value` properties an attestor found and a registration entry asks for.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Why a text is not a selector. Texts: `SPIRE: pkg/server/api/selector.go`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("missing selector type")]
    MissingType,
    #[error("selector type contains ':'")]
    ColonInType,
    #[error("missing selector value")]
    MissingValue,
    #[error("selector must be formatted as type:value")]
    NoColon,
    #[error("selector is too long")]
    TooLong,
}

/// Longest selector, type and value together, in bytes. The wire bounds messages; this bounds one value.
pub const MAX_SELECTOR_LEN: usize = 65_536;

/// One selector. Ordered by type, then value. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    text: Arc<str>,
    colon_at: u32,
}

impl Selector {
    /// Builds a selector from its two halves. The value may contain colons; the type may not.
    ///
    /// # Errors
    /// [`SelectorError`].
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() {
            return Err(SelectorError::MissingType);
        }
        if kind.contains(':') {
            return Err(SelectorError::ColonInType);
        }
        if value.is_empty() {
            return Err(SelectorError::MissingValue);
        }
        Self::join(kind.len(), Arc::from(format!("{kind}:{value}")))
    }

    /// Parses `type:value`, split at the first colon.
    ///
    /// # Errors
    /// [`SelectorError`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or(SelectorError::NoColon)?;
        if kind.is_empty() {
            return Err(SelectorError::MissingType);
        }
        if value.is_empty() {
            return Err(SelectorError::MissingValue);
        }
        Self::join(kind.len(), Arc::from(text))
    }

    fn join(colon_at: usize, text: Arc<str>) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_LEN {
            return Err(SelectorError::TooLong);
        }
        let colon_at = u32::try_from(colon_at).unwrap_or(u32::MAX);
        Ok(Self { text, colon_at })
    }

    /// The part before the first colon: the attestor's name.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text.get(..self.colon_at as usize).unwrap_or_default()
    }

    /// The part after the first colon.
    #[must_use]
    pub fn value(&self) -> &str {
        self.text
            .get(self.colon_at as usize + 1..)
            .unwrap_or_default()
    }

    /// `type:value`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        self.kind()
            .cmp(other.kind())
            .then_with(|| self.value().cmp(other.value()))
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A set of selectors, kept sorted and without duplicates. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SelectorSet(Arc<[Selector]>);

impl SelectorSet {
    /// Whether every selector of this set is in `other`.
    #[must_use]
    pub fn is_subset_of(&self, other: &Self) -> bool {
        if self.len() > other.len() {
            return false;
        }
        let mut others = other.iter();
        'mine: for mine in self.iter() {
            for theirs in others.by_ref() {
                match theirs.cmp(mine) {
                    Ordering::Less => {}
                    Ordering::Equal => continue 'mine,
                    Ordering::Greater => return false,
                }
            }
            return false;
        }
        true
    }

    /// Whether every selector of `other` is in this set.
    #[must_use]
    pub fn is_superset_of(&self, other: &Self) -> bool {
        other.is_subset_of(self)
    }

    /// Whether the two sets share a selector.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        let (few, many) = if self.len() <= other.len() {
            (self, other)
        } else {
            (other, self)
        };
        few.iter().any(|selector| many.contains(selector))
    }

    /// Whether `selector` is in the set.
    #[must_use]
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// The selectors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// The selectors in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Selector] {
        &self.0
    }

    /// How many selectors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<Selector>> for SelectorSet {
    fn from(mut selectors: Vec<Selector>) -> Self {
        selectors.sort_unstable();
        selectors.dedup();
        Self(Arc::from(selectors))
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        Self::from(selectors.into_iter().collect::<Vec<_>>())
    }
}

impl<'a> IntoIterator for &'a SelectorSet {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Serialize for SelectorSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for SelectorSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(Vec::<Selector>::deserialize(deserializer)?))
    }
}
