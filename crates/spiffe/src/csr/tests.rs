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
