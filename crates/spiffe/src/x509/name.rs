//! Distinguished names: the attributes SPIFFE authorities use, written in the order and string types everybody's
//! verifier compares byte for byte.

use std::fmt;

use super::encode::{self, OID, SEQUENCE, SET};
use super::extensions::oid;
use der::asn1::AnyRef;
use der::{Decode, Reader, SliceReader, Tag, Tagged};

/// Most attributes read from a foreign name.
const MAX_ATTRIBUTES: usize = 64;

/// A distinguished name. Values of the same kind share one relative name; kinds come in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    pub locality: Vec<String>,
    pub province: Vec<String>,
    pub street_address: Vec<String>,
    pub postal_code: Vec<String>,
    pub common_name: Option<String>,
    pub serial_number: Option<String>,
    /// x500UniqueIdentifier, the attribute that tells SVIDs of one name apart.
    pub unique_id: Option<String>,
}

/// The name as RFC 4514 writes it, last attribute first.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("SERIALNUMBER", self.serial_number.as_slice()),
            ("CN", self.common_name.as_slice()),
            ("OU", &self.organizational_unit),
            ("O", &self.organization),
            ("C", &self.country),
        ];
        let values = parts
            .into_iter()
            .flat_map(|(kind, values)| values.iter().map(move |value| (kind, value)));
        for (at, (kind, value)) in values.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{kind}={value}")?;
        }
        Ok(())
    }
}

/// The last arc of each attribute's identifier `2.5.4.n`, in the order written.
const COUNTRY: u8 = 6;
const ORGANIZATION: u8 = 10;
const ORGANIZATIONAL_UNIT: u8 = 11;
const LOCALITY: u8 = 7;
const PROVINCE: u8 = 8;
const STREET_ADDRESS: u8 = 9;
const POSTAL_CODE: u8 = 17;
const COMMON_NAME: u8 = 3;
const SERIAL_NUMBER: u8 = 5;
const UNIQUE_ID: u8 = 45;

impl Subject {
    /// The subject of every X509-SVID by default: `C=US, O=SPIRE`.
    #[must_use]
    pub fn spire() -> Self {
        Self {
            country: vec!["US".to_owned()],
            organization: vec!["SPIRE".to_owned()],
            ..Self::default()
        }
    }

    /// Whether no attribute is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The encoded `Name`.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        encode::tlv(&mut out, SEQUENCE, |out| {
            write_values(out, COUNTRY, &self.country);
            write_values(out, ORGANIZATION, &self.organization);
            write_values(out, ORGANIZATIONAL_UNIT, &self.organizational_unit);
            write_values(out, LOCALITY, &self.locality);
            write_values(out, PROVINCE, &self.province);
            write_values(out, STREET_ADDRESS, &self.street_address);
            write_values(out, POSTAL_CODE, &self.postal_code);
            write_values(out, COMMON_NAME, self.common_name.as_slice());
            write_values(out, SERIAL_NUMBER, self.serial_number.as_slice());
            write_values(out, UNIQUE_ID, self.unique_id.as_slice());
        });
        out
    }

    /// Reads the known attributes of an encoded `Name`; others are left out. `None` when it is not a name.
    #[must_use]
    pub fn from_der(name: &[u8]) -> Option<Self> {
        let mut subject = Self::default();
        let sets = AnyRef::from_der(name)
            .ok()
            .filter(|any| any.tag() == Tag::Sequence)?;
        let mut sets = SliceReader::new(sets.value()).ok()?;
        let mut budget = MAX_ATTRIBUTES;
        while !sets.is_finished() {
            let set = AnyRef::decode(&mut sets)
                .ok()
                .filter(|any| any.tag() == Tag::Set)?;
            let mut attributes = SliceReader::new(set.value()).ok()?;
            while !attributes.is_finished() {
                budget = budget.checked_sub(1)?;
                let (kind, value) = attributes
                    .sequence(|inner| {
                        let kind = oid(inner)?;
                        let value = AnyRef::decode(inner)?;
                        Ok::<_, der::Error>((kind, value))
                    })
                    .ok()?;
                subject.put(kind, value);
            }
        }
        Some(subject)
    }

    fn put(&mut self, kind: &[u8], value: AnyRef<'_>) {
        let (Some(kind), Some(text)) = (attribute_number(kind), text_of(value)) else {
            return;
        };
        match kind {
            COUNTRY => self.country.push(text),
            ORGANIZATION => self.organization.push(text),
            ORGANIZATIONAL_UNIT => self.organizational_unit.push(text),
            LOCALITY => self.locality.push(text),
            PROVINCE => self.province.push(text),
            STREET_ADDRESS => self.street_address.push(text),
            POSTAL_CODE => self.postal_code.push(text),
            COMMON_NAME => self.common_name = Some(text),
            SERIAL_NUMBER => self.serial_number = Some(text),
            UNIQUE_ID => self.unique_id = Some(text),
            _ => {}
        }
    }
}

/// `n` of `2.5.4.n`.
fn attribute_number(kind: &[u8]) -> Option<u8> {
    match kind {
        [0x55, 0x04, n] => Some(*n),
        _ => None,
    }
}

fn text_of(value: AnyRef<'_>) -> Option<String> {
    match value.tag() {
        Tag::PrintableString | Tag::Utf8String | Tag::Ia5String => {
            std::str::from_utf8(value.value()).ok().map(str::to_owned)
        }
        // TeletexString, read as Latin-1 like everybody does.
        Tag::TeletexString => Some(value.value().iter().copied().map(char::from).collect()),
        _ => None,
    }
}

fn write_values(out: &mut Vec<u8>, kind: u8, values: &[String]) {
    if values.is_empty() {
        return;
    }
    // DER wants the members of a SET in the order of their encodings.
    let mut members: Vec<Vec<u8>> = values
        .iter()
        .map(|value| {
            let mut member = Vec::new();
            encode::tlv(&mut member, SEQUENCE, |out| {
                encode::bytes(out, OID, &[0x55, 0x04, kind]);
                let tag = if value.bytes().all(is_printable) {
                    0x13
                } else {
                    0x0c
                };
                encode::bytes(out, tag, value.as_bytes());
            });
            member
        })
        .collect();
    members.sort_unstable();
    encode::tlv(out, SET, |out| {
        members
            .iter()
            .for_each(|member| out.extend_from_slice(member));
    });
}

/// The alphabet of PrintableString.
fn is_printable(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spire_subject_has_the_bytes_go_writes() {
        let der = Subject::spire().to_der();
        let go = b"\x30\x1d\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02US\x31\x0e\x30\x0c\x06\x03\x55\x04\x0a\x13\x05SPIRE";
        assert_eq!(der, go);
    }

    #[test]
    fn names_read_back_as_written() {
        let subject = Subject {
            country: vec!["US".into()],
            organization: vec!["b".into(), "a".into()],
            organizational_unit: vec!["DOWNSTREAM-1".into()],
            common_name: Some("caf\u{e9}".into()),
            serial_number: Some("123".into()),
            ..Subject::default()
        };
        let mut read = Subject::from_der(&subject.to_der()).unwrap();
        read.organization.sort_by(|a, b| b.cmp(a));
        assert_eq!(read, subject);
        assert_eq!(Subject::default().to_der(), [0x30, 0]);
    }

    #[test]
    fn refuses_what_is_not_a_name() {
        assert_eq!(Subject::from_der(b""), None);
        assert_eq!(Subject::from_der(b"\x31\x00"), None);
        assert_eq!(Subject::from_der(b"\x30\x02\x31\x05"), None);
        assert_eq!(Subject::from_der(b"\x30\x00\x00"), None);
    }
}
