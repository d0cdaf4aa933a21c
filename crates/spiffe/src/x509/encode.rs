//! Writing DER: a value is written behind its tag, then the length is put between. Enough for certificates and
//! signing requests, whose bytes we lay out ourselves.

use crate::clock::unix_seconds;
use der::DateTime;
use std::time::{Duration, SystemTime};

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;

/// Appends one value: `tag`, the length of what `body` writes, and what it writes.
pub(crate) fn tlv(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[tag, 0]);
    let start = out.len();
    body(out);
    let len = out.len() - start;
    let octets = len.to_be_bytes();
    let [.., short] = octets;
    if len < 0x80 {
        set(out, start - 1, short);
        return;
    }
    let unused = octets.iter().take_while(|octet| **octet == 0).count();
    let significant = octets.get(unused..).unwrap_or_default();
    let [.., count] = significant.len().to_be_bytes();
    set(out, start - 1, 0x80 | count);
    out.splice(start..start, significant.iter().copied());
}

fn set(out: &mut [u8], at: usize, octet: u8) {
    if let Some(place) = out.get_mut(at) {
        *place = octet;
    }
}

/// Appends `tag` and the length and bytes of `value`.
pub(crate) fn bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    tlv(out, tag, |out| out.extend_from_slice(value));
}

/// Appends a non-negative INTEGER from big-endian bytes.
pub(crate) fn unsigned(out: &mut Vec<u8>, value: &[u8]) {
    let significant: Vec<u8> = value
        .iter()
        .copied()
        .skip_while(|octet| *octet == 0)
        .collect();
    tlv(out, INTEGER, |out| {
        if significant.first().is_none_or(|top| *top >= 0x80) {
            out.push(0);
        }
        out.extend_from_slice(&significant);
    });
}

/// Appends a BIT STRING of whole octets.
pub(crate) fn bit_string(out: &mut Vec<u8>, value: &[u8]) {
    tlv(out, BIT_STRING, |out| {
        out.push(0);
        out.extend_from_slice(value);
    });
}

/// Appends a moment as RFC 5280 §4.1.2.5 wants it: UTCTime through 2049, GeneralizedTime after. `None` for
/// moments neither can name.
pub(crate) fn time(out: &mut Vec<u8>, at: SystemTime) -> Option<()> {
    let seconds = u64::try_from(unix_seconds(at)).ok()?;
    let at = DateTime::from_unix_duration(Duration::from_secs(seconds)).ok()?;
    let clock = format!(
        "{:02}{:02}{:02}{:02}{:02}Z",
        at.month(),
        at.day(),
        at.hour(),
        at.minutes(),
        at.seconds()
    );
    if at.year() < 2050 {
        bytes(
            out,
            0x17,
            format!("{:02}{clock}", at.year() % 100).as_bytes(),
        );
    } else {
        bytes(out, 0x18, format!("{:04}{clock}", at.year()).as_bytes());
    }
    Some(())
}

/// Appends one `Extension`. `oid` is the encoded value of the identifier.
pub(crate) fn extension(
    out: &mut Vec<u8>,
    oid: &[u8],
    critical: bool,
    value: impl FnOnce(&mut Vec<u8>),
) {
    tlv(out, SEQUENCE, |out| {
        bytes(out, OID, oid);
        if critical {
            out.extend_from_slice(&[0x01, 0x01, 0xff]);
        }
        tlv(out, OCTET_STRING, value);
    });
}

/// Appends the subject alternative name extension: DNS names, then URIs.
pub(crate) fn write_san_extension(
    out: &mut Vec<u8>,
    critical: bool,
    dns_names: &[String],
    uris: &[&str],
) {
    extension(out, &[0x55, 0x1d, 0x11], critical, |out| {
        tlv(out, SEQUENCE, |out| {
            for name in dns_names {
                bytes(out, 0x82, name.as_bytes());
            }
            for uri in uris {
                bytes(out, 0x86, uri.as_bytes());
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, head) in [
            (0, vec![4, 0]),
            (127, vec![4, 127]),
            (128, vec![4, 0x81, 128]),
            (256, vec![4, 0x82, 1, 0]),
        ] {
            let mut out = Vec::new();
            bytes(&mut out, OCTET_STRING, &vec![7; len]);
            assert_eq!(out.len(), head.len() + len);
            assert!(out.starts_with(&head));
        }
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        for (value, der) in [
            (&[0u8, 0][..], &[2u8, 1, 0][..]),
            (&[0, 0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[1, 0], &[2, 2, 1, 0]),
        ] {
            let mut out = Vec::new();
            unsigned(&mut out, value);
            assert_eq!(out, der);
        }
    }

    #[test]
    fn times_change_form_in_2050() {
        let mut out = Vec::new();
        time(&mut out, crate::from_unix(2_524_607_999)).unwrap();
        time(&mut out, crate::from_unix(2_524_608_000)).unwrap();
        assert_eq!(out, b"\x17\x0d491231235959Z\x18\x0f20500101000000Z");
        assert_eq!(time(&mut out, crate::from_unix(-1)), None);
    }
}
