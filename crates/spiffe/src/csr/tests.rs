use super::*;
use crate::key::KeyType;

fn key() -> KeyPair {
    KeyPair::generate(KeyType::EcP256).unwrap()
}

#[test]
fn requests_read_back_as_written() {
    for ty in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = KeyPair::generate(ty).unwrap();
        let dns = ["a.example".to_owned()];
        let der = build_csr(&key, &Subject::spire(), &["spiffe://example.org/w"], &dns).unwrap();
        let csr = Csr::parse_and_verify(&der).unwrap();
        assert_eq!(&csr.public_key, key.public_key());
        assert_eq!(
            (csr.uris.as_slice(), csr.dns_names.as_slice()),
            (&["spiffe://example.org/w".to_owned()][..], &dns[..])
        );
        assert_eq!(csr.subject(), Subject::spire());
        assert_eq!(&Csr::public_key_unverified(&der).unwrap(), key.public_key());
    }
}

#[test]
fn requests_without_names_have_none() {
    let der = build_csr(&key(), &Subject::spire(), &[], &[]).unwrap();
    let csr = Csr::parse_and_verify(&der).unwrap();
    assert!(csr.uris.is_empty() && csr.dns_names.is_empty());
}

#[test]
fn requests_of_another_writer_read_the_same() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, "SPIRE");
    let der = params.serialize_request(&key).unwrap();
    let csr = Csr::parse_and_verify(der.der()).unwrap();
    assert_eq!(csr.dns_names, ["a.example"]);
    assert_eq!(csr.subject().organization, ["SPIRE"]);
}

#[test]
fn sv_03_touched_requests_are_refused() {
    let der = build_csr(&key(), &Subject::spire(), &["spiffe://example.org/w"], &[]).unwrap();
    let mut names = der.clone();
    let at = names.windows(2).position(|window| window == b"/w").unwrap();
    names[at + 1] = b'v';
    assert_eq!(Csr::parse_and_verify(&names), Err(CsrError::Signature));
    // The key alone is given without looking at the signature.
    Csr::public_key_unverified(&names).unwrap();
    let mut signature = der.clone();
    *signature.last_mut().unwrap() ^= 1;
    assert_eq!(Csr::parse_and_verify(&signature), Err(CsrError::Signature));
    assert_eq!(
        Csr::parse_and_verify(&[&der[..], &[0]].concat()),
        Err(CsrError::Malformed)
    );
    assert_eq!(
        Csr::parse_and_verify(&der[..der.len() - 1]),
        Err(CsrError::Malformed)
    );
    assert_eq!(
        Csr::parse_and_verify(&vec![0; MAX_CSR_LEN + 1]),
        Err(CsrError::TooLong)
    );
    assert_eq!(Csr::public_key_unverified(b""), Err(CsrError::Malformed));
}

/// A request with these attributes, DER as given, signed for real.
fn request(attributes: &[u8]) -> Vec<u8> {
    let key = key();
    let mut info = Vec::new();
    tlv(&mut info, 0x30, |out| {
        out.extend_from_slice(&[0x02, 1, 0]);
        out.extend_from_slice(&Subject::spire().to_der());
        out.extend_from_slice(key.public_key().spki_der());
        tlv(out, 0xa0, |out| out.extend_from_slice(attributes));
    });
    let scheme = key.public_key().x509_scheme().unwrap();
    let signature = key.sign_now(scheme, &info).unwrap();
    build::wrap_signed(&info, scheme, &signature).unwrap()
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    tlv(&mut out, tag, |out| out.extend_from_slice(content));
    out
}

/// An attribute that asks for extensions, with this as its values.
fn asking(values: &[u8]) -> Vec<u8> {
    der(
        0x30,
        &[der(0x06, EXTENSION_REQUEST), values.to_vec()].concat(),
    )
}

/// One that asks for this list of extensions.
fn asking_for(extensions: &[Vec<u8>]) -> Vec<u8> {
    asking(&der(0x31, &der(0x30, &extensions.concat())))
}

fn extension(oid: &[u8], critical: &[u8], value: &[u8]) -> Vec<u8> {
    let fields = [der(0x06, oid), critical.to_vec(), der(0x04, value)];
    der(0x30, &fields.concat())
}

fn names(general_names: &[Vec<u8>]) -> Vec<u8> {
    extension(ALTERNATIVE_NAME, &[], &der(0x30, &general_names.concat()))
}

const CRITICAL: &[u8] = &[0x01, 0x01, 0xff];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];

#[test]
fn nothing_but_the_names_of_a_request_is_taken_from_its_extensions() {
    let dns = || names(&[der(0x82, b"a.example")]);
    let authority = || extension(BASIC_CONSTRAINTS, CRITICAL, &[0x30, 3, 0x01, 0x01, 0xff]);
    let password = der(
        0x30,
        b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07\x31\x03\x0c\x01\x78",
    );
    let cases = [
        ("alone", asking_for(&[dns()])),
        (
            "asking to be an authority",
            asking_for(&[authority(), dns()]),
        ),
        (
            "asking to sign certificates",
            asking_for(&[dns(), extension(KEY_USAGE, CRITICAL, &[3, 2, 1, 6])]),
        ),
        (
            "a critical extension that nobody knows",
            asking_for(&[extension(&[0x2a, 3, 4], CRITICAL, b"?"), dns()]),
        ),
        (
            "names of other kinds: an address, a mailbox, a registered ID",
            asking_for(&[names(&[
                der(0x87, &[127, 0, 0, 1]),
                der(0x81, b"a@b.example"),
                der(0x82, b"a.example"),
                der(0x88, &[0x2a, 3]),
            ])]),
        ),
        (
            "a password beside it",
            [password.clone(), asking_for(&[dns()])].concat(),
        ),
    ];
    for (what, attributes) in cases {
        let csr = Csr::parse_and_verify(&request(&attributes)).expect(what);
        assert_eq!(csr.dns_names, ["a.example"], "{what}");
        assert!(csr.uris.is_empty(), "{what}");
    }
    for (what, attributes) in [
        ("no attributes", Vec::new()),
        ("a password alone", password),
        ("an empty list", asking_for(&[])),
        ("an empty list of names", asking_for(&[names(&[])])),
        ("an authority without names", asking_for(&[authority()])),
    ] {
        let csr = Csr::parse_and_verify(&request(&attributes)).expect(what);
        assert!(csr.dns_names.is_empty() && csr.uris.is_empty(), "{what}");
    }
}

#[test]
fn requests_with_odd_extensions_are_refused() {
    let dns = || names(&[der(0x82, b"a.example")]);
    let numbered = |number: u8| extension(&[0x2a, 3, number], &[], b"");
    let cases = [
        (
            "two attributes that ask",
            [asking_for(&[dns()]), asking_for(&[])].concat(),
        ),
        ("names twice", asking_for(&[dns(), dns()])),
        ("no values", asking(&der(0x31, &[]))),
        (
            "two values",
            asking(&der(0x31, &[der(0x30, &dns()), der(0x30, &[])].concat())),
        ),
        (
            "values that are no set",
            asking(&der(0x30, &der(0x30, &dns()))),
        ),
        (
            "a list that is a set",
            asking(&der(0x31, &der(0x31, &dns()))),
        ),
        (
            "an extension without a value",
            asking_for(&[der(0x30, &der(0x06, ALTERNATIVE_NAME))]),
        ),
        (
            "a value that is no octet string",
            asking_for(&[der(
                0x30,
                &[der(0x06, ALTERNATIVE_NAME), der(0x03, &[0])].concat(),
            )]),
        ),
        (
            "bytes behind an extension's value",
            asking_for(&[der(
                0x30,
                &[
                    der(0x06, ALTERNATIVE_NAME),
                    der(0x04, &der(0x30, &[])),
                    vec![5, 0],
                ]
                .concat(),
            )]),
        ),
        (
            "a criticality of two bytes",
            asking_for(&[extension(
                ALTERNATIVE_NAME,
                &[0x01, 0x02, 0xff, 0xff],
                &[0x30, 0],
            )]),
        ),
        (
            "more extensions than anybody needs",
            asking_for(&(0..65).map(numbered).collect::<Vec<_>>()),
        ),
        ("an attribute that is no sequence", vec![0x04, 0]),
        ("half an attribute", vec![0x30, 9, 0x06]),
    ];
    are_refused(&cases);
}

#[test]
fn requests_with_odd_names_are_refused() {
    let of_names = |value: &[u8]| asking_for(&[extension(ALTERNATIVE_NAME, &[], value)]);
    are_refused(&[
        ("names that are nothing", of_names(&[])),
        ("names that are no sequence", of_names(&der(0x31, &[]))),
        ("bytes behind the names", of_names(&[0x30, 0, 5, 0])),
        (
            "a name beyond its list",
            of_names(&[0x30, 3, 0x82, 9, b'a']),
        ),
        (
            "a DNS name beyond ASCII",
            asking_for(&[names(&[der(0x82, "caf\u{e9}.example".as_bytes())])]),
        ),
        (
            "a URI that is no text",
            asking_for(&[names(&[der(0x86, &[0xff, 0xfe])])]),
        ),
        (
            "a DNS name in parts",
            asking_for(&[names(&[der(0xa2, &der(0x16, b"a.example"))])]),
        ),
        (
            "more names than anybody needs",
            asking_for(&[names(&vec![der(0x82, b"a"); 1025])]),
        ),
    ]);
}

fn are_refused(cases: &[(&str, Vec<u8>)]) {
    for (what, attributes) in cases {
        let refused = Csr::parse_and_verify(&request(attributes));
        assert_eq!(refused, Err(CsrError::Malformed), "{what}");
    }
}
