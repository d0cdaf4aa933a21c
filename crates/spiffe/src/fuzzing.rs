//! One entry per parser that reads bytes from outside, for the fuzz targets and for the test that replays their
//! corpus. Each parses, and asserts that what was accepted prints and parses back as itself.

use crate::bundle::{Bundle, BundleMap, JwtBundle, X509Bundle};
use crate::clock::from_unix;
use crate::csr::Csr;
use crate::id::SpiffeId;
use crate::selector::Selector;
use crate::socket_addr::{parse_broker_endpoint, parse_endpoint};
use crate::svid::jwt::{JwtBundleSource, inspect_jwt_svid, verify_jwt_svid};
use crate::svid::x509::{BundleSource, X509Svid, verify_svid};
use crate::trust_domain::TrustDomain;
use crate::x509::Certificate;
use std::sync::Arc;

/// Knows every trust domain, each by the certificates and keys given.
#[derive(Debug)]
struct TrustAll {
    certificates: Vec<Certificate>,
    keys: Bundle,
}

impl BundleSource for TrustAll {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        let mut bundle = X509Bundle::new(trust_domain.clone());
        self.certificates
            .iter()
            .for_each(|certificate| bundle.add(certificate.clone()));
        Some(Arc::new(bundle))
    }
}

impl JwtBundleSource for TrustAll {
    fn jwt_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>> {
        let bundle = Bundle {
            trust_domain: trust_domain.clone(),
            ..self.keys.clone()
        };
        Some(Arc::new(bundle.jwt_bundle()))
    }
}

/// SPIFFE IDs and trust domain names.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert_eq!(
            format!("spiffe://{}{}", id.trust_domain_name(), id.path()),
            text
        );
    }
    if let Ok(trust_domain) = TrustDomain::parse(text) {
        assert_eq!(TrustDomain::parse(trust_domain.as_str()), Ok(trust_domain));
    }
    drop(SpiffeId::parse_folding(text));
}

/// Selectors.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(selector.as_str(), text);
        assert_eq!(
            Selector::new(selector.kind(), selector.value()),
            Ok(selector)
        );
    }
}

/// Endpoint addresses.
pub fn socket_addr(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(endpoint) = parse_endpoint(text) {
        assert_eq!(parse_endpoint(&endpoint.to_string()), Ok(endpoint));
    }
    drop(parse_broker_endpoint(text));
}

/// Certificates and chains, as concatenated DER; the last certificate also serves as the authority.
pub fn x509_svid(data: &[u8]) {
    let Ok(chain) = Certificate::parse_concatenated(data) else {
        return;
    };
    let ders: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
    assert_eq!(ders.concat(), data);
    for certificate in &chain {
        drop((
            certificate.subject(),
            certificate.serial(),
            certificate.to_pem(),
        ));
    }
    drop(X509Svid::parse(&ders));
    let certificates = chain.last().cloned().into_iter().collect();
    let trust_all = TrustAll {
        certificates,
        keys: Bundle::new(TrustDomain::from_checked("a")),
    };
    drop(verify_svid(&ders, &trust_all, from_unix(1_700_000_000)));
}

/// CSRs.
pub fn csr(data: &[u8]) {
    if let Ok(request) = Csr::parse_and_verify(data) {
        assert_eq!(
            Csr::public_key_unverified(data),
            Ok(request.public_key().clone())
        );
        drop(request.subject());
    }
}

/// Tokens.
pub fn jwt(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    drop(inspect_jwt_svid(token));
    let trust_all = TrustAll {
        certificates: Vec::new(),
        keys: Bundle::new(TrustDomain::from_checked("a")),
    };
    let verified = verify_jwt_svid(token, "a", &trust_all, from_unix(0)).is_ok();
    assert!(!verified, "nobody signed it");
}

/// Bundle documents, key sets and bundle maps.
pub fn bundle_json(data: &[u8]) {
    let trust_domain = TrustDomain::from_checked("example.org");
    if let Ok(bundle) = Bundle::from_spiffe_json(trust_domain.clone(), data) {
        assert_eq!(
            Bundle::from_spiffe_json(trust_domain.clone(), &bundle.to_spiffe_json()),
            Ok(bundle)
        );
    }
    drop(JwtBundle::from_jwks(trust_domain, data));
    drop(BundleMap::from_json(data));
}

/// PEM files of certificates.
pub fn pem(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let trust_domain = TrustDomain::from_checked("example.org");
    if let Ok(bundle) = Bundle::from_pem(trust_domain.clone(), text) {
        assert_eq!(Bundle::from_pem(trust_domain, &bundle.to_pem()), Ok(bundle));
    }
}

#[cfg(test)]
mod tests;
