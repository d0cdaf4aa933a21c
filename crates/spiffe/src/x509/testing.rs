//! Certificates for tests: any extension can be left out, changed or broken before signing.

use super::encode::{self, BIT_STRING, INTEGER, OID, SEQUENCE};
use super::{Certificate, Subject, build, encode_algorithm, tlv};
use crate::bundle::X509Bundle;
use crate::clock::from_unix;
use crate::key::{KeyPair, KeyType, PublicKey};
use crate::svid::x509::BundleSource;
use crate::trust_domain::TrustDomain;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

pub(crate) const NOW: i64 = 1_700_000_000;
pub(crate) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub(crate) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

pub(crate) fn now() -> SystemTime {
    from_unix(NOW)
}

/// What a test certificate will hold.
#[derive(Clone)]
pub(crate) struct CertTemplate {
    pub(crate) subject: Subject,
    pub(crate) uris: Vec<String>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) san_critical: bool,
    /// Content of the basic constraints sequence.
    pub(crate) basic_constraints: Option<Vec<u8>>,
    /// Content of the key usage bit string.
    pub(crate) key_usage: Option<Vec<u8>>,
    pub(crate) extended_key_usage: Vec<&'static [u8]>,
    /// Identifier, criticality, value.
    pub(crate) further: Vec<(Vec<u8>, bool, Vec<u8>)>,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

pub(crate) const AUTHORITY: &[u8] = &[0x01, 0x01, 0xff];

impl CertTemplate {
    pub(crate) fn leaf(id: &str) -> Self {
        Self {
            subject: Subject::spire(),
            uris: vec![id.to_owned()],
            dns_names: Vec::new(),
            san_critical: false,
            basic_constraints: Some(Vec::new()),
            key_usage: Some(vec![3, 0xa8]),
            extended_key_usage: vec![SERVER_AUTH, CLIENT_AUTH],
            further: Vec::new(),
            not_before: NOW - 10,
            not_after: NOW + 3600,
        }
    }

    pub(crate) fn authority(name: &str, uri: &str) -> Self {
        Self {
            subject: Subject {
                common_name: Some(name.to_owned()),
                ..Subject::default()
            },
            basic_constraints: Some(AUTHORITY.to_vec()),
            key_usage: Some(vec![1, 0x06]),
            extended_key_usage: Vec::new(),
            ..Self::leaf(uri)
        }
    }

    pub(crate) fn with_path_len(mut self, path_len: u8) -> Self {
        self.basic_constraints = Some([AUTHORITY, &[INTEGER, 1, path_len]].concat());
        self
    }

    /// Adds name constraints: (tag, text) of permitted and of excluded subtrees.
    pub(crate) fn with_names(mut self, permitted: &[(u8, &str)], excluded: &[(u8, &str)]) -> Self {
        let subtrees = |list: &[(u8, &str)]| {
            let mut out = Vec::new();
            for (kind, text) in list {
                tlv(&mut out, SEQUENCE, |out| {
                    encode::bytes(out, *kind, text.as_bytes());
                });
            }
            out
        };
        let mut value = Vec::new();
        tlv(&mut value, SEQUENCE, |out| {
            for (tag, list) in [(0xa0, permitted), (0xa1, excluded)] {
                if !list.is_empty() {
                    encode::bytes(out, tag, &subtrees(list));
                }
            }
        });
        self.further.push((vec![0x55, 0x1d, 30], true, value));
        self
    }

    pub(crate) fn sign(&self, key: &PublicKey, issuer: &Subject, signer: &KeyPair) -> Vec<u8> {
        let scheme = signer.public_key().x509_scheme().unwrap();
        let mut tbs = Vec::new();
        tlv(&mut tbs, SEQUENCE, |out| {
            out.extend_from_slice(&[0xa0, 3, INTEGER, 1, 2]);
            encode::unsigned(out, &[0x12, 0x34]);
            out.extend_from_slice(encode_algorithm(scheme).unwrap());
            out.extend_from_slice(&issuer.to_der());
            tlv(out, SEQUENCE, |out| {
                encode::time(out, from_unix(self.not_before)).unwrap();
                encode::time(out, from_unix(self.not_after)).unwrap();
            });
            out.extend_from_slice(&self.subject.to_der());
            out.extend_from_slice(key.spki_der());
            tlv(out, 0xa3, |out| {
                tlv(out, SEQUENCE, |out| self.write_extensions(out));
            });
        });
        let signature = signer.sign_now(scheme, &tbs).unwrap();
        build::wrap_signed(&tbs, scheme, &signature).unwrap()
    }

    fn write_extensions(&self, out: &mut Vec<u8>) {
        if let Some(bits) = &self.key_usage {
            encode::extension(out, &[0x55, 0x1d, 15], true, |out| {
                encode::bytes(out, BIT_STRING, bits);
            });
        }
        if !self.extended_key_usage.is_empty() {
            encode::extension(out, &[0x55, 0x1d, 37], false, |out| {
                tlv(out, SEQUENCE, |out| {
                    self.extended_key_usage
                        .iter()
                        .for_each(|oid| encode::bytes(out, OID, oid));
                });
            });
        }
        if let Some(content) = &self.basic_constraints {
            encode::extension(out, &[0x55, 0x1d, 19], true, |out| {
                encode::bytes(out, SEQUENCE, content);
            });
        }
        if !self.uris.is_empty() || !self.dns_names.is_empty() {
            let uris: Vec<&str> = self.uris.iter().map(String::as_str).collect();
            encode::write_san_extension(out, self.san_critical, &self.dns_names, &uris);
        }
        for (oid, critical, value) in &self.further {
            encode::extension(out, oid, *critical, |out| out.extend_from_slice(value));
        }
    }
}

/// An authority that signs test certificates.
#[derive(Clone)]
pub(crate) struct Ca {
    pub(crate) key: KeyPair,
    pub(crate) subject: Subject,
    pub(crate) der: Vec<u8>,
}

impl Ca {
    pub(crate) fn root(trust_domain: &str) -> Self {
        Self::self_signed(&CertTemplate::authority(
            "root",
            &format!("spiffe://{trust_domain}"),
        ))
    }

    pub(crate) fn self_signed(template: &CertTemplate) -> Self {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let der = template.sign(key.public_key(), &template.subject, &key);
        Self {
            key,
            subject: template.subject.clone(),
            der,
        }
    }

    pub(crate) fn issue_ca(&self, template: &CertTemplate) -> Self {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let der = template.sign(key.public_key(), &self.subject, &self.key);
        Self {
            key,
            subject: template.subject.clone(),
            der,
        }
    }

    /// A certificate for a key nobody needs.
    pub(crate) fn issue(&self, template: &CertTemplate) -> Vec<u8> {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        template.sign(key.public_key(), &self.subject, &self.key)
    }

    pub(crate) fn certificate(&self) -> Certificate {
        Certificate::from_der(&self.der).unwrap()
    }
}

/// Bundles by trust domain.
#[derive(Debug, Default)]
pub(crate) struct Bundles(BTreeMap<TrustDomain, Arc<X509Bundle>>);

impl Bundles {
    pub(crate) fn of(list: &[(&str, &[&Ca])]) -> Self {
        let mut bundles = Self::default();
        for (name, authorities) in list {
            let name = TrustDomain::parse(name).unwrap();
            let mut bundle = X509Bundle::new(name.clone());
            authorities
                .iter()
                .for_each(|ca| bundle.add(ca.certificate()));
            bundles.0.insert(name, Arc::new(bundle));
        }
        bundles
    }
}

impl BundleSource for Bundles {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        self.0.get(trust_domain).cloned()
    }
}
