//! The certificate extensions path validation and SPIFFE look at, decoded strictly: an extension that is present
//! but malformed makes the whole certificate malformed.

use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Reader, SliceReader, Tag, Tagged};

/// Most extensions in one certificate or request.
const MAX_EXTENSIONS: usize = 64;
/// Most names in one extension.
const MAX_NAMES: usize = 1024;

/// Key usage bits by their number in RFC 5280 §4.2.1.3.
pub(crate) const DIGITAL_SIGNATURE: u16 = 1 << 0;
pub(crate) const KEY_CERT_SIGN: u16 = 1 << 5;
pub(crate) const CRL_SIGN: u16 = 1 << 6;

/// Tags of the general names we act on.
pub(crate) const DNS_NAME: u32 = 2;
pub(crate) const URI_NAME: u32 = 6;

#[derive(Debug, Default, Clone)]
pub(crate) struct Extensions {
    pub(crate) is_ca: bool,
    pub(crate) path_len: Option<u32>,
    pub(crate) key_usage: Option<u16>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage>,
    pub(crate) subject_key_id: Option<Vec<u8>>,
    pub(crate) authority_key_id: Option<Vec<u8>>,
    pub(crate) uris: Vec<String>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) san_critical: bool,
    pub(crate) name_constraints: Option<NameConstraints>,
    /// A critical extension we do not understand: nothing may rely on the certificate.
    pub(crate) unknown_critical: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtendedKeyUsage {
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
    pub(crate) any: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct NameConstraints {
    pub(crate) permitted: Vec<NameConstraint>,
    pub(crate) excluded: Vec<NameConstraint>,
}

/// One subtree: the kind of name it speaks of, and its text for DNS names and URIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameConstraint {
    pub(crate) kind: u32,
    pub(crate) text: String,
}

impl NameConstraints {
    /// Whether all of them are kept with their text, so that they can be enforced and compared.
    pub(crate) fn are_readable(&self) -> bool {
        let mut all = self.permitted.iter().chain(&self.excluded);
        all.all(|constraint| matches!(constraint.kind, DNS_NAME | URI_NAME))
    }

    /// Whether a constraint of the given kind is among them.
    pub(crate) fn mentions(&self, kind: u32) -> bool {
        self.permitted
            .iter()
            .chain(&self.excluded)
            .any(|constraint| constraint.kind == kind)
    }
}

/// One extension, not yet decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawExtension<'a> {
    /// The content of the identifier.
    pub(crate) oid: &'a [u8],
    pub(crate) critical: bool,
    pub(crate) value: &'a [u8],
}

/// Splits the content of an `Extensions` sequence. Refuses duplicates and unreasonable numbers.
pub(crate) fn read_extension_list(content: &[u8]) -> Result<Vec<RawExtension<'_>>, der::Error> {
    let mut reader = SliceReader::new(content)?;
    let mut list: Vec<RawExtension<'_>> = Vec::new();
    while !reader.is_finished() {
        let extension = reader.sequence(|inner| {
            let oid = oid(inner)?;
            let critical = inner.peek_byte() == Some(0x01) && bool::decode(inner)?;
            let value = AnyRef::decode(inner)?;
            value.tag().assert_eq(Tag::OctetString)?;
            Ok::<_, der::Error>(RawExtension {
                oid,
                critical,
                value: value.value(),
            })
        })?;
        if list.len() == MAX_EXTENSIONS || list.iter().any(|known| known.oid == extension.oid) {
            return Err(Tag::Sequence.value_error().into());
        }
        list.push(extension);
    }
    Ok(list)
}

impl Extensions {
    /// Decodes the extensions of a certificate.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, der::Error> {
        let mut known = Self::default();
        for raw in read_extension_list(content)? {
            known.put(raw)?;
        }
        Ok(known)
    }

    fn put(&mut self, raw: RawExtension<'_>) -> Result<(), der::Error> {
        match raw.oid {
            [0x55, 0x1d, 14] => self.subject_key_id = Some(octets(raw.value)?.to_vec()),
            [0x55, 0x1d, 15] => self.key_usage = Some(key_usage(raw.value)?),
            [0x55, 0x1d, 17] => {
                self.san_critical = raw.critical;
                (self.dns_names, self.uris) = alternative_names(raw.value)?;
            }
            [0x55, 0x1d, 19] => (self.is_ca, self.path_len) = basic_constraints(raw.value)?,
            [0x55, 0x1d, 30] => self.name_constraints = Some(name_constraints(raw.value)?),
            [0x55, 0x1d, 35] => self.authority_key_id = authority_key_id(raw.value)?,
            [0x55, 0x1d, 37] => self.extended_key_usage = Some(extended_key_usage(raw.value)?),
            _ => self.unknown_critical |= raw.critical,
        }
        Ok(())
    }
}

/// The content of an OBJECT IDENTIFIER, of any length.
pub(crate) fn oid<'a>(reader: &mut SliceReader<'a>) -> Result<&'a [u8], der::Error> {
    let any = AnyRef::decode(reader)?;
    any.tag().assert_eq(Tag::ObjectIdentifier)?;
    Ok(any.value())
}

fn octets(value: &[u8]) -> Result<&[u8], der::Error> {
    let any = AnyRef::from_der(value)?;
    any.tag().assert_eq(Tag::OctetString)?;
    Ok(any.value())
}

/// The content of a value that must be one SEQUENCE.
pub(crate) fn sequence(value: &[u8]) -> Result<SliceReader<'_>, der::Error> {
    let any = AnyRef::from_der(value)?;
    any.tag().assert_eq(Tag::Sequence)?;
    SliceReader::new(any.value())
}

fn key_usage(value: &[u8]) -> Result<u16, der::Error> {
    let bits = BitStringRef::from_der(value)?;
    let mut usage = 0;
    for (at, bit) in bits.bits().enumerate().take(16) {
        usage |= u16::from(bit) << at;
    }
    Ok(usage)
}

fn basic_constraints(value: &[u8]) -> Result<(bool, Option<u32>), der::Error> {
    let mut reader = sequence(value)?;
    let is_ca = reader.peek_byte() == Some(0x01) && bool::decode(&mut reader)?;
    let path_len = if reader.is_finished() {
        None
    } else {
        Some(u32::decode(&mut reader)?)
    };
    reader.finish()?;
    Ok((is_ca, path_len))
}

fn extended_key_usage(value: &[u8]) -> Result<ExtendedKeyUsage, der::Error> {
    let mut reader = sequence(value)?;
    let mut usage = ExtendedKeyUsage::default();
    while !reader.is_finished() {
        match oid(&mut reader)? {
            [0x2b, 6, 1, 5, 5, 7, 3, 1] => usage.server_auth = true,
            [0x2b, 6, 1, 5, 5, 7, 3, 2] => usage.client_auth = true,
            [0x55, 0x1d, 37, 0] => usage.any = true,
            _ => {}
        }
    }
    Ok(usage)
}

fn authority_key_id(value: &[u8]) -> Result<Option<Vec<u8>>, der::Error> {
    let mut reader = sequence(value)?;
    let mut id = None;
    while !reader.is_finished() {
        let field = AnyRef::decode(&mut reader)?;
        if context_number(field.tag()) == Some(0) {
            id = Some(field.value().to_vec());
        }
    }
    Ok(id)
}

/// The DNS names and URIs of a `GeneralNames`; other kinds are passed over.
pub(crate) fn alternative_names(value: &[u8]) -> Result<(Vec<String>, Vec<String>), der::Error> {
    let mut reader = sequence(value)?;
    let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
    let mut budget = MAX_NAMES;
    while !reader.is_finished() {
        let name = AnyRef::decode(&mut reader)?;
        budget = budget.checked_sub(1).ok_or(Tag::Sequence.value_error())?;
        match context_number(name.tag()) {
            Some(DNS_NAME) => dns_names.push(ia5(name)?),
            Some(URI_NAME) => uris.push(ia5(name)?),
            _ => {}
        }
    }
    Ok((dns_names, uris))
}

fn ia5(name: AnyRef<'_>) -> Result<String, der::Error> {
    match std::str::from_utf8(name.value()) {
        Ok(text) if text.is_ascii() && !name.tag().is_constructed() => Ok(text.to_owned()),
        _ => Err(name.tag().value_error().into()),
    }
}

fn name_constraints(value: &[u8]) -> Result<NameConstraints, der::Error> {
    let mut reader = sequence(value)?;
    let mut constraints = NameConstraints::default();
    while !reader.is_finished() {
        let field = AnyRef::decode(&mut reader)?;
        let list = match context_number(field.tag()) {
            Some(0) => &mut constraints.permitted,
            Some(1) => &mut constraints.excluded,
            _ => return Err(field.tag().value_error().into()),
        };
        let mut subtrees = SliceReader::new(field.value())?;
        while !subtrees.is_finished() {
            if list.len() == MAX_NAMES {
                return Err(Tag::Sequence.value_error().into());
            }
            list.push(subtrees.sequence(|inner| subtree(inner))?);
        }
    }
    Ok(constraints)
}

fn subtree(inner: &mut SliceReader<'_>) -> Result<NameConstraint, der::Error> {
    let base = AnyRef::decode(inner)?;
    let kind = context_number(base.tag()).ok_or(base.tag().value_error())?;
    let text = if matches!(kind, DNS_NAME | URI_NAME) {
        ia5(base)?
    } else {
        String::new()
    };
    // RFC 5280 §4.2.1.10: minimum is 0 (so absent) and maximum is absent; anything left over is refused.
    Ok(NameConstraint { kind, text })
}

pub(crate) fn context_number(tag: Tag) -> Option<u32> {
    tag.is_context_specific().then(|| tag.number().value())
}
