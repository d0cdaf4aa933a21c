//! JSON documents that users hand in, read member by member, so that a fault names its member.
//!
//! On the shims a document is read as Go reads it: the case of letters does not matter, of a repeated member the last
//! one wins, and an unknown one is passed over (with a warning). Natively an unknown or repeated member is an error,
//! since a member that is silently ignored is a setting that is silently not in force. `null` is absent in both.

use std::cell::RefCell;
use std::fmt;

use config::closest;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::context::Frontend;

/// A JSON value that keeps repeated members.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Fraction,
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a number",
            Self::Fraction => "a number that is not a whole one",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Fraction, Json::Integer))
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Json, E> {
        Ok(Json::Fraction)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = entries.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

/// An object of the document.
pub(crate) struct Object<'j> {
    frontend: Frontend,
    /// `entries[0].selectors[1]`; empty for the whole document.
    path: String,
    members: &'j [(String, Json)],
    /// The names that were asked for: those that exist.
    known: RefCell<Vec<&'static str>>,
}

impl<'j> Object<'j> {
    pub(crate) fn new(
        json: &'j Json,
        path: impl Into<String>,
        frontend: Frontend,
    ) -> Result<Self, String> {
        let path = path.into();
        match json {
            Json::Object(members) => Ok(Self {
                frontend,
                path,
                members,
                known: RefCell::default(),
            }),
            other if path.is_empty() => Err(format!("it is {}, not an object", other.kind())),
            other => Err(format!("{path} is {}, not an object", other.kind())),
        }
    }

    fn name(&self, member: &str) -> String {
        match self.path.as_str() {
            "" => member.to_owned(),
            path => format!("{path}.{member}"),
        }
    }

    /// The member's value; nothing when it is absent or null.
    fn value(&self, name: &'static str) -> Result<Option<&'j Json>, String> {
        self.known.borrow_mut().push(name);
        let mut found = self.members.iter().filter(|(key, _)| match self.frontend {
            Frontend::Native => key == name,
            Frontend::Spire => key.eq_ignore_ascii_case(name),
        });
        let value = match self.frontend {
            Frontend::Spire => found.rfind(|(_, value)| *value != Json::Null),
            Frontend::Native => {
                let first = found.next();
                if found.next().is_some() {
                    return Err(format!("{} is given twice", self.name(name)));
                }
                first.filter(|(_, value)| *value != Json::Null)
            }
        };
        Ok(value.map(|(_, value)| value))
    }

    fn wrong<T>(&self, name: &str, found: &Json, wanted: &str) -> Result<T, String> {
        Err(format!(
            "{} takes {wanted}, found {}",
            self.name(name),
            found.kind()
        ))
    }

    /// Text; empty when absent.
    pub(crate) fn text(&self, name: &'static str) -> Result<String, String> {
        match self.value(name)? {
            None => Ok(String::new()),
            Some(Json::Text(text)) => Ok(text.clone()),
            Some(other) => self.wrong(name, other, "text"),
        }
    }

    /// True or false; false when absent.
    pub(crate) fn boolean(&self, name: &'static str) -> Result<bool, String> {
        match self.value(name)? {
            None => Ok(false),
            Some(Json::Bool(value)) => Ok(*value),
            Some(other) => self.wrong(name, other, "true or false"),
        }
    }

    /// A whole number; 0 when absent.
    pub(crate) fn integer<N: TryFrom<i64> + Default>(
        &self,
        name: &'static str,
    ) -> Result<N, String> {
        match self.value(name)? {
            None => Ok(N::default()),
            Some(Json::Integer(number)) => N::try_from(*number)
                .map_err(|_range| format!("{} is out of range: {number}", self.name(name))),
            Some(other) => self.wrong(name, other, "a whole number"),
        }
    }

    /// A list; empty when absent. Each item comes with its path.
    pub(crate) fn list(&self, name: &'static str) -> Result<Vec<(String, &'j Json)>, String> {
        match self.value(name)? {
            None => Ok(Vec::new()),
            Some(Json::List(items)) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, item)| (format!("{}[{index}]", self.name(name)), item))
                .collect()),
            Some(other) => self.wrong(name, other, "a list"),
        }
    }

    /// A list of texts; empty when absent.
    pub(crate) fn texts(&self, name: &'static str) -> Result<Vec<String>, String> {
        self.list(name)?
            .into_iter()
            .map(|(path, item)| match item {
                Json::Text(text) => Ok(text.clone()),
                other => Err(format!("{path} takes text, found {}", other.kind())),
            })
            .collect()
    }

    /// An object below this one.
    pub(crate) fn object(&self, name: &'static str) -> Result<Option<Self>, String> {
        self.value(name)?
            .map(|value| Self::new(value, self.name(name), self.frontend))
            .transpose()
    }

    /// To be called when all members that exist have been asked for: an unknown one is an error, or on the shims a
    /// warning that comes back.
    pub(crate) fn finish(self) -> Result<Vec<String>, String> {
        let known = self.known.borrow();
        let mut warnings = Vec::new();
        for (name, _) in self.members {
            let is_known = |known: &&str| match self.frontend {
                Frontend::Native => *known == name,
                Frontend::Spire => known.eq_ignore_ascii_case(name),
            };
            if known.iter().any(is_known) {
                continue;
            }
            let hint = match (name.as_str(), closest(name, known.iter().copied())) {
                // SPIRE had one lifetime for both before 1.5.
                ("ttl", _) if known.contains(&"x509_svid_ttl") => {
                    "; use x509_svid_ttl and jwt_svid_ttl".to_owned()
                }
                (_, Some(near)) => format!("; did you mean {near:?}?"),
                (_, None) => String::new(),
            };
            let text = format!("{} is unknown{hint}", self.name(name));
            match self.frontend {
                Frontend::Native => return Err(text),
                Frontend::Spire => warnings.push(text),
            }
        }
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::{Frontend, Json, Object};

    fn read<T>(json: &str, frontend: Frontend, with: impl FnOnce(&Object<'_>) -> T) -> T {
        let json: Json = serde_json::from_str(json).unwrap();
        with(&Object::new(&json, "", frontend).unwrap())
    }

    #[test]
    fn null_is_absent() {
        for frontend in [Frontend::Native, Frontend::Spire] {
            let json = r#"{"a": null, "b": null, "c": null, "d": null}"#;
            read(json, frontend, |object| {
                assert_eq!(object.text("a").unwrap(), "");
                assert_eq!(object.integer::<i64>("b").unwrap(), 0);
                assert!(!object.boolean("c").unwrap());
                assert!(object.list("d").unwrap().is_empty());
            });
        }
    }

    #[test]
    fn the_shims_read_any_case_and_the_last_of_several() {
        read(r#"{"Name": "a", "NAME": "b"}"#, Frontend::Spire, |object| {
            assert_eq!(object.text("name").unwrap(), "b");
        });
    }

    #[test]
    fn natively_a_repeated_member_is_an_error() {
        read(
            r#"{"name": "a", "name": "a"}"#,
            Frontend::Native,
            |object| {
                assert_eq!(object.text("name").unwrap_err(), "name is given twice");
            },
        );
    }

    #[test]
    fn a_value_of_another_kind_is_an_error_that_names_the_member() {
        let json = r#"{"a": 1, "b": "1", "c": 1.5, "d": {}, "e": [1], "f": 3000000000}"#;
        for frontend in [Frontend::Native, Frontend::Spire] {
            read(json, frontend, |object| {
                for fault in [
                    object.text("a").map(drop),
                    object.boolean("b").map(drop),
                    object.integer::<i64>("c").map(drop),
                    object.list("d").map(drop),
                    object.texts("e").map(drop),
                    object.integer::<i32>("f").map(drop),
                ] {
                    let fault = fault.unwrap_err();
                    assert!(fault.starts_with(|c| ('a'..='f').contains(&c)), "{fault}");
                }
            });
        }
    }
}
