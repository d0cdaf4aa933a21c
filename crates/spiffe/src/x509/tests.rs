use super::testing::{Ca, CertTemplate, NOW, now};
use super::*;
use crate::csr::Csr;
use crate::key::{KeyPair, KeyType, Signer};
use crate::random::SystemRandom;
use crate::{SpiffeId, TrustDomain, from_unix};
use der::Decode;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Runs a future that must not suspend.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("suspended with a key in memory"),
    }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn ca_template(key: &KeyPair) -> CaTemplate {
    CaTemplate {
        serial: random_serial(&SystemRandom),
        subject: Subject {
            serial_number: Some("1".into()),
            ..Subject::spire()
        },
        id: id("spiffe://example.org"),
        public_key: key.public_key().clone(),
        not_before: from_unix(NOW - 10),
        not_after: from_unix(NOW + 86_400),
        path_len: None,
        subject_key_id: None,
    }
}

fn leaf_template(key: &KeyPair) -> LeafTemplate {
    LeafTemplate {
        serial: random_serial(&SystemRandom),
        subject: Subject::spire(),
        id: id("spiffe://example.org/w"),
        dns_names: Vec::new(),
        public_key: key.public_key().clone(),
        not_before: from_unix(NOW - 10),
        not_after: from_unix(NOW + 3600),
    }
}

struct Issued {
    key: KeyPair,
    root: Certificate,
}

impl Issued {
    fn new(ty: KeyType) -> Self {
        let key = KeyPair::generate(ty).unwrap();
        let der = at_once(issue_ca(&ca_template(&key), None, &key)).unwrap();
        Self {
            root: Certificate::from_der(&der).unwrap(),
            key,
        }
    }

    fn issuer(&self) -> Issuer<'_> {
        let key_id = self.root.subject_key_id().unwrap_or_default();
        Issuer {
            subject_der: self.root.subject_der(),
            key_id,
            signer: &self.key,
        }
    }

    fn leaf(&self, template: &LeafTemplate) -> Certificate {
        Certificate::from_der(&at_once(issue_leaf(template, &self.issuer())).unwrap()).unwrap()
    }
}

/// Another implementation's reading of the same bytes.
fn oracle(certificate: &Certificate) -> x509_cert::Certificate {
    x509_cert::Certificate::from_der(certificate.der()).unwrap()
}

fn extension<'a, T: Decode<'a> + der::oid::AssociatedOid>(
    cert: &'a x509_cert::Certificate,
) -> Option<(bool, T)> {
    match cert.tbs_certificate().get_extension::<T>() {
        Ok(found) => found,
        Err(_) => panic!("malformed extension"),
    }
}

#[test]
fn sv_01_xs_05_xs_13_xs_14_authorities_carry_the_trust_domain_and_may_sign_certificates() {
    use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
    for ty in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let issued = Issued::new(ty);
        assert_eq!(issued.root.uris(), ["spiffe://example.org"]);
        assert!(
            issued.root.is_ca()
                && issued.root.is_self_issued()
                && issued.root.is_signed_by(&issued.root)
        );
        let oracle = oracle(&issued.root);
        let (critical, usage) = extension::<KeyUsage>(&oracle).unwrap();
        assert!(
            critical && usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature()
        );
        let (critical, basic) = extension::<BasicConstraints>(&oracle).unwrap();
        assert!(critical && basic.ca && basic.path_len_constraint.is_none());
        let key_id = issued.key.public_key().subject_key_id();
        assert_eq!(issued.root.subject_key_id(), Some(&key_id[..]));
        assert_eq!(issued.root.authority_key_id(), None);
    }
}

#[test]
fn sv_02_xs_06_authorities_with_a_path_are_not_minted() {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let template = CaTemplate {
        id: id("spiffe://example.org/ca"),
        ..ca_template(&key)
    };
    assert_eq!(
        at_once(issue_ca(&template, None, &key)),
        Err(BuildError::AuthorityWithPath)
    );
    let csr = at_once(build_ca_csr(
        &Subject::spire(),
        &id("spiffe://example.org/ca"),
        &key,
    ));
    assert_eq!(csr, Err(BuildError::AuthorityWithPath));
}

#[test]
fn xs_03_leaves_without_a_path_are_not_issued() {
    let issued = Issued::new(KeyType::EcP256);
    let template = LeafTemplate {
        id: id("spiffe://example.org"),
        ..leaf_template(&issued.key)
    };
    assert_eq!(
        at_once(issue_leaf(&template, &issued.issuer())),
        Err(BuildError::LeafWithoutPath)
    );
}

#[test]
fn xs_04_names_are_critical_when_the_subject_is_empty() {
    let issued = Issued::new(KeyType::EcP256);
    let with = issued.leaf(&leaf_template(&issued.key));
    assert!(!with.extensions().san_critical);
    let without = issued.leaf(&LeafTemplate {
        subject: Subject::default(),
        ..leaf_template(&issued.key)
    });
    assert!(without.extensions().san_critical);
    assert_eq!(without.subject_der(), [0x30, 0]);
}

#[test]
fn xs_07_xs_10_xs_13_xs_15_xs_17_xs_18_leaves_have_the_extensions_of_an_svid() {
    use x509_cert::ext::pkix::{
        AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage,
    };
    let issued = Issued::new(KeyType::EcP256);
    let dns_names = vec!["db.example.org".to_owned()];
    let subject = Subject {
        common_name: Some("db.example.org".into()),
        ..Subject::spire()
    };
    let leaf = issued.leaf(&LeafTemplate {
        subject,
        dns_names,
        ..leaf_template(&issued.key)
    });
    assert_eq!(leaf.uris(), ["spiffe://example.org/w"]);
    assert_eq!(leaf.dns_names(), ["db.example.org"]);
    assert_eq!(
        leaf.subject_common_name().as_deref(),
        Some("db.example.org")
    );
    assert_eq!(leaf.issuer_der(), issued.root.subject_der());
    assert!(leaf.is_signed_by(&issued.root) && !leaf.is_ca());

    let oracle = oracle(&leaf);
    let (critical, usage) = extension::<KeyUsage>(&oracle).unwrap();
    assert!(
        critical && usage.digital_signature() && usage.key_encipherment() && usage.key_agreement()
    );
    assert!(!usage.key_cert_sign() && !usage.crl_sign());
    let (_, purposes) = extension::<ExtendedKeyUsage>(&oracle).unwrap();
    let purposes: Vec<String> = purposes.0.iter().map(ToString::to_string).collect();
    assert_eq!(purposes, ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]);
    let (critical, basic) = extension::<BasicConstraints>(&oracle).unwrap();
    assert!(critical && !basic.ca);
    let (_, authority) = extension::<AuthorityKeyIdentifier>(&oracle).unwrap();
    assert_eq!(
        authority.key_identifier.unwrap().as_bytes(),
        issued.root.subject_key_id().unwrap()
    );
    let order: Vec<String> = oracle
        .tbs_certificate()
        .extensions()
        .unwrap()
        .iter()
        .map(|one| one.extn_id.to_string())
        .collect();
    assert_eq!(
        order,
        [
            "2.5.29.15",
            "2.5.29.37",
            "2.5.29.19",
            "2.5.29.14",
            "2.5.29.35",
            "2.5.29.17"
        ]
    );
}

#[test]
fn intermediates_are_issued_with_their_issuers_name_and_key_id() {
    let issued = Issued::new(KeyType::EcP384);
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let template = CaTemplate {
        path_len: Some(0),
        ..ca_template(&key)
    };
    let der = at_once(issue_ca(&template, Some(&issued.issuer()), &issued.key)).unwrap();
    let intermediate = Certificate::from_der(&der).unwrap();
    assert!(intermediate.is_signed_by(&issued.root) && intermediate.is_ca());
    assert_eq!(
        intermediate.authority_key_id(),
        issued.root.subject_key_id()
    );
    assert_eq!(intermediate.extensions().path_len, Some(0));
    assert_eq!(
        at_once(issue_ca(&template, None, &issued.key)),
        Err(BuildError::NotOwnKey)
    );
}

#[test]
fn refuses_templates_without_serial_or_sensible_validity() {
    let issued = Issued::new(KeyType::EcP256);
    let issue =
        |template: &LeafTemplate| at_once(issue_leaf(template, &issued.issuer())).unwrap_err();
    let good = leaf_template(&issued.key);
    assert_eq!(
        issue(&LeafTemplate {
            serial: [0; 16],
            ..good.clone()
        }),
        BuildError::Serial
    );
    assert_eq!(
        issue(&LeafTemplate {
            not_after: good.not_before,
            ..good.clone()
        }),
        BuildError::Validity
    );
    assert_eq!(
        issue(&LeafTemplate {
            not_before: from_unix(-5),
            ..good.clone()
        }),
        BuildError::Validity
    );
    assert_eq!(
        issue(&LeafTemplate {
            dns_names: vec!["é".into()],
            ..good.clone()
        }),
        BuildError::DnsName("é".into())
    );
    let long = SpiffeId::parse(&format!("spiffe://example.org/{}", "a".repeat(2048))).unwrap();
    assert_eq!(
        issue(&LeafTemplate { id: long, ..good }),
        BuildError::IdTooLong
    );
}

#[test]
fn sv_03_identity_and_key_are_inside_the_signed_bytes() {
    let issued = Issued::new(KeyType::EcP256);
    let leaf = issued.leaf(&leaf_template(&issued.key));
    for part in [
        &b"spiffe://example.org/w"[..],
        issued.key.public_key().spki_der(),
    ] {
        let mut der = leaf.der().to_vec();
        let at = der
            .windows(part.len())
            .position(|window| window == part)
            .unwrap()
            + part.len()
            - 1;
        der[at] = if der[at] == b'w' { b'v' } else { der[at] ^ 1 };
        // Either the key is no longer one, or the signature no longer fits.
        assert!(
            Certificate::from_der(&der).map_or(true, |touched| !touched.is_signed_by(&issued.root))
        );
    }
}

#[test]
fn serials_and_dates_read_back() {
    let issued = Issued::new(KeyType::EcP256);
    let mut template = leaf_template(&issued.key);
    template.serial = [0xff; 16];
    let leaf = issued.leaf(&template);
    assert_eq!(leaf.serial(), "340282366920938463463374607431768211455");
    assert_eq!(
        (leaf.not_before(), leaf.not_after()),
        (template.not_before, template.not_after)
    );
    assert_eq!(serial_to_decimal(&[]), "0");
    assert_eq!(serial_to_decimal(&[0x3b, 0x9a, 0xca, 0x00]), "1000000000");
    template.not_after = from_unix(4_102_444_800);
    assert_eq!(issued.leaf(&template).not_after(), template.not_after);
}

#[test]
fn ca_requests_ask_for_the_trust_domain() {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let der = at_once(build_ca_csr(&Subject::spire(), &trust_domain.id(), &key)).unwrap();
    let csr = Csr::parse_and_verify(&der).unwrap();
    assert_eq!(csr.uris(), ["spiffe://example.org"]);
    assert_eq!(
        (csr.subject(), csr.public_key()),
        (Subject::spire(), key.public_key())
    );
}

/// A signer whose key is elsewhere.
#[derive(Debug)]
struct Elsewhere(KeyPair);

#[async_trait::async_trait]
impl Signer for Elsewhere {
    fn public_key(&self) -> &crate::PublicKey {
        self.0.public_key()
    }

    async fn sign(
        &self,
        scheme: crate::SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, crate::SignError> {
        self.0.sign(scheme, message).await
    }
}

#[test]
fn remote_signers_sign_the_same_certificates() {
    let signer = Elsewhere(KeyPair::generate(KeyType::EcP256).unwrap());
    let der = at_once(issue_ca(&ca_template(&signer.0), None, &signer)).unwrap();
    let root = Certificate::from_der(&der).unwrap();
    assert!(root.is_signed_by(&root));
}

#[test]
fn xs_22_malformed_certificates_are_refused() {
    let root = Ca::root("example.org");
    let template = CertTemplate::leaf("spiffe://example.org/w");
    let good = root.issue(&template);
    let refused = |der: &[u8]| Certificate::from_der(der).unwrap_err();
    assert_eq!(
        refused(&[&good[..], &[0]].concat()),
        CertificateError::Malformed
    );
    assert_eq!(
        refused(&good[..good.len() - 1]),
        CertificateError::Malformed
    );
    assert_eq!(
        refused(&[&[0x31], &good[1..]].concat()),
        CertificateError::Malformed
    );
    assert_eq!(refused(b""), CertificateError::Malformed);
    assert_eq!(
        refused(&vec![0x30; MAX_CERTIFICATE_LEN + 1]),
        CertificateError::TooLong
    );
    // Basic constraints and key usage filled with 0xff.
    let mut broken = template.clone();
    broken.basic_constraints = Some(vec![0xff; 3]);
    assert_eq!(refused(&root.issue(&broken)), CertificateError::Malformed);
    broken = CertTemplate {
        key_usage: Some(vec![0xff, 0xff]),
        ..template.clone()
    };
    assert_eq!(refused(&root.issue(&broken)), CertificateError::Malformed);
    // The same extension twice.
    broken = template;
    broken
        .further
        .push((vec![0x55, 0x1d, 19], true, vec![0x30, 0]));
    assert_eq!(refused(&root.issue(&broken)), CertificateError::Malformed);
}

#[test]
fn pem_and_concatenations_hold_several_certificates() {
    let (a, b) = (Ca::root("a").certificate(), Ca::root("b").certificate());
    let pem = format!("filler\n{}more\n{}", a.to_pem(), b.to_pem());
    assert_eq!(
        Certificate::parse_pem_bundle(&pem).unwrap(),
        [a.clone(), b.clone()]
    );
    assert_eq!(
        Certificate::parse_pem_bundle("filler"),
        Err(PemBundleError::None)
    );
    let broken = "\n-----BEGIN CERTIFICATE-----\nAAAA\n";
    let refused = Certificate::parse_pem_bundle(broken).unwrap_err();
    assert!(
        refused.to_string().contains("in line 2 has no end"),
        "{refused}"
    );
    let both = [a.der(), b.der()].concat();
    assert_eq!(
        Certificate::parse_concatenated(&both).unwrap(),
        [a.clone(), b]
    );
    assert_eq!(Certificate::parse_concatenated(&[]).unwrap(), []);
    Certificate::parse_concatenated(&both[..both.len() - 1]).unwrap_err();
    let json = serde_json::to_string(&a).unwrap();
    assert_eq!(serde_json::from_str::<Certificate>(&json).unwrap(), a);
    assert!(a.not_before() < now());
}

#[test]
fn certificates_of_another_writer_read_the_same() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = rcgen::string::Ia5String::try_from("spiffe://example.org/w").unwrap();
    params.subject_alt_names = vec![
        rcgen::SanType::URI(uri),
        rcgen::SanType::DnsName("a.example".try_into().unwrap()),
        rcgen::SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    params.serial_number = Some(1234.into());
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let other = params.self_signed(&key).unwrap();
    let read = Certificate::from_der(other.der()).unwrap();
    assert_eq!(read.uris(), ["spiffe://example.org/w"]);
    assert_eq!(read.dns_names(), ["a.example"]);
    assert_eq!(read.serial(), "1234");
    assert!(read.is_signed_by(&read));
}

#[test]
fn pem_bundles_name_the_block_and_line_that_is_wrong_and_take_no_keys() {
    let good = Ca::root("a").certificate().to_pem();
    let lines = good.lines().count();
    let refused = |label: &str, der: &[u8]| {
        let mut text = good.clone();
        crate::pem::write_block(&mut text, label, der);
        Certificate::parse_pem_bundle(&text).unwrap_err()
    };
    let (block, line) = (2, lines + 1);
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
        assert_eq!(
            refused(label, &[1]),
            PemBundleError::PrivateKey { block, line }
        );
    }
    assert_eq!(
        refused("CERTIFICATE", &[1, 2]).to_string(),
        format!("PEM block 2 (line {line}): certificate is not valid DER")
    );
    let other = refused("CERTIFICATE REQUEST", &[1]).to_string();
    assert!(other.contains("CERTIFICATE REQUEST"), "{other}");
}

/// Made with `openssl req -x509 -newkey rsa:2048 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest`.
#[test]
fn a_root_signed_with_rsa_pss_is_seen_to_have_signed_itself() {
    for pem in [
        include_str!("testing/pss_sha256.pem"),
        include_str!("testing/pss_sha384.pem"),
        include_str!("testing/pss_sha512.pem"),
    ] {
        let root = Certificate::parse_pem_bundle(pem).unwrap().remove(0);
        assert!(root.is_ca() && root.is_self_issued());
        assert!(root.is_signed_by(&root));
        let mut touched = root.der().to_vec();
        *touched.last_mut().unwrap() ^= 1;
        let touched = Certificate::from_der(&touched).unwrap();
        assert!(!touched.is_signed_by(&root));
    }
}
