//! JSON from outside, where an object is meant.
//!
//! serde also reads a struct from a list, each value into the member at its place, and of a member that comes twice a map
//! keeps the last. Other readers of the same document refuse the one and may keep the first of the other, so that two
//! programs would believe different things of one signed text. [`Object`] and [`UniqueMembers`] refuse both.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;

/// A struct that is read from a JSON object and from nothing else. The struct itself refuses a known member that comes
/// twice.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(access)).map(Object)
    }
}

/// The members of an object of any names, none of which comes twice. Within its values a member may.
pub(crate) struct UniqueMembers(pub(crate) Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = UniqueMembers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueMembers, A::Error> {
        let mut members = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member comes twice"));
            }
        }
        Ok(UniqueMembers(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Pair {
        a: u8,
        b: Option<u8>,
    }

    fn pair(json: &str) -> Option<Pair> {
        let read: Result<Object<Pair>, _> = serde_json::from_str(json);
        read.ok().map(|object| object.0)
    }

    #[test]
    fn an_object_is_read_by_its_names() {
        assert_eq!(pair(r#"{"b": 2, "a": 1}"#), Some(Pair { a: 1, b: Some(2) }));
        assert_eq!(
            pair(r#" {"a": 1, "c": [3]} "#),
            Some(Pair { a: 1, b: None })
        );
    }

    #[test]
    fn nothing_else_is_read_in_its_place() {
        // What serde alone takes.
        let by_place: Pair = serde_json::from_str("[1, 2]").unwrap();
        assert_eq!(by_place, Pair { a: 1, b: Some(2) });
        for json in [
            "[1, 2]",
            "[1]",
            "[]",
            "[{\"a\": 1}]",
            "1",
            "\"a\"",
            "null",
            "true",
            "",
            "{\"a\": 1",
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": 1}{}",
        ] {
            assert_eq!(pair(json), None, "{json}");
        }
        let value = serde_json::json!([1, 2]);
        assert!(Object::<Pair>::deserialize(&value).is_err());
    }

    #[test]
    fn members_are_unique_whatever_their_names() {
        let read =
            |json| serde_json::from_str::<UniqueMembers>(json).map(|members| members.0.len());
        assert_eq!(read(r#"{"a": 1, "b": {"a": 1}}"#).unwrap(), 2);
        assert_eq!(read("{}").unwrap(), 0);
        for json in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "b": 2, "a": null}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"[["a", 1]]"#,
            "[]",
            "null",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
