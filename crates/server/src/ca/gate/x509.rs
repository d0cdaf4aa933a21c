//! X.509 documents: SVIDs, and CA certificates for downstream servers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::clock::unix_seconds;
use spiffe::id::SpiffeId;
use spiffe::key::{PublicKey, Signer};
use spiffe::svid::x509::X509Svid;
use spiffe::x509::{
    CaTemplate, Certificate, LeafTemplate, Subject, issue_ca, issue_leaf, random_serial,
    serial_to_decimal,
};

use super::super::grant::{Grant, GrantKind};
use super::super::x509::X509Issuer;
use super::super::{Ca, IssueError};
use super::{Document, IssuedX509, SigningAuthority, admit_lifetime, lifetime, mismatch, require};
use crate::audit::Fields;

impl SigningAuthority for X509Issuer {
    fn active(ca: &Ca, now: SystemTime) -> Result<Arc<Self>, IssueError> {
        let issuer = ca.x509.active().ok_or(IssueError::NoX509Authority)?;
        if issuer.certificate.not_after() <= now {
            return Err(IssueError::AuthorityExpired);
        }
        Ok(issuer)
    }

    fn key(&self) -> &dyn Signer {
        self.key.as_ref()
    }
}

/// An X509-SVID for a key.
pub(super) struct X509Document {
    pub(super) key: PublicKey,
}

impl Document for X509Document {
    type Template = LeafTemplate;
    type Issuer = X509Issuer;
    type Signed = Vec<u8>;
    type Issued = IssuedX509;
    const NAME: &'static str = "an X509-SVID";
    const LABEL: &'static str = "x509_svid";

    fn allowed_by(kind: GrantKind) -> bool {
        match kind {
            GrantKind::Workload | GrantKind::Agent | GrantKind::Server => true,
            GrantKind::DownstreamCa => false,
        }
    }

    fn template(
        &self,
        ca: &Ca,
        grant: &Grant,
        issuer: &X509Issuer,
        now: SystemTime,
    ) -> Result<LeafTemplate, IssueError> {
        let default_ttl = if grant.kind == GrantKind::Agent {
            ca.profile.agent_ttl
        } else {
            ca.profile.x509_svid_ttl
        };
        let ttl = grant.x509_ttl.unwrap_or(default_ttl);
        let (not_before, not_after) = lifetime(now, ttl, issuer.certificate.not_after(), grant)?;
        let mut subject = grant.subject.clone().unwrap_or_else(Subject::spire);
        // SPIRE: the first DNS name is the common name too.
        if let Some(first) = grant.dns_names.first() {
            subject.common_name = Some(first.clone());
        }
        Ok(LeafTemplate {
            serial: random_serial(ca.random.as_ref()),
            subject,
            id: grant.id.clone(),
            dns_names: grant.dns_names.clone(),
            public_key: self.key.clone(),
            not_before,
            not_after,
        })
    }

    fn admit(
        &self,
        template: &LeafTemplate,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<(), IssueError> {
        require(template.id == grant.id, "its SPIFFE ID is another one")?;
        require(template.public_key == self.key, "its key is another one")?;
        require(
            template.dns_names == grant.dns_names,
            "its DNS names are others",
        )?;
        admit_lifetime(template.not_after, grant.x509_ttl, grant, now)
    }

    async fn sign(
        template: Arc<LeafTemplate>,
        issuer: Arc<X509Issuer>,
    ) -> Result<Vec<u8>, IssueError> {
        Ok(issue_leaf(&template, &issuer.as_issuer()).await?)
    }

    /// The certificate is parsed from its own bytes, as a peer would: neither the encoder nor a signer elsewhere is trusted to
    /// have done what the template says.
    fn compare(
        signed: Vec<u8>,
        template: &LeafTemplate,
        issuer: &X509Issuer,
        now: SystemTime,
    ) -> Result<IssuedX509, IssueError> {
        let leaf = read(&signed)?;
        compare_with_template(
            &leaf,
            &Expected {
                serial: &template.serial,
                public_key: &template.public_key,
                not_after: template.not_after,
            },
        )?;
        require(
            leaf.dns_names() == template.dns_names,
            "its DNS names are others",
        )?;
        check_issuer(&leaf, issuer, now)?;
        let issued = issued(template.id.clone(), &leaf, &issuer.presented);
        // One URI, no CA, key usage of a leaf.
        let svid = X509Svid::from_certificates(vec![leaf])
            .map_err(|_not_a_leaf| mismatch("it is not an X509-SVID"))?;
        require(*svid.id() == template.id, "its SPIFFE ID is another one")?;
        Ok(issued)
    }

    fn describe(issued: &IssuedX509, fields: &mut Fields) {
        describe_x509(issued, fields);
    }
}

/// A CA certificate for the key of a downstream server.
pub(super) struct DownstreamCaDocument {
    pub(super) key: PublicKey,
    pub(super) preferred_ttl: Option<Duration>,
}

impl Document for DownstreamCaDocument {
    type Template = CaTemplate;
    type Issuer = X509Issuer;
    type Signed = Vec<u8>;
    type Issued = IssuedX509;
    const NAME: &'static str = "a CA certificate";
    const LABEL: &'static str = "x509_ca_svid";

    fn allowed_by(kind: GrantKind) -> bool {
        match kind {
            GrantKind::DownstreamCa => true,
            GrantKind::Workload | GrantKind::Agent | GrantKind::Server => false,
        }
    }

    fn template(
        &self,
        ca: &Ca,
        grant: &Grant,
        issuer: &X509Issuer,
        now: SystemTime,
    ) -> Result<CaTemplate, IssueError> {
        let ttl = self
            .preferred_ttl
            .filter(|ttl| !ttl.is_zero())
            .unwrap_or(ca.profile.ca_ttl);
        let (not_before, not_after) = lifetime(now, ttl, issuer.certificate.not_after(), grant)?;
        let mut subject = issuer.certificate.subject();
        // SPIRE: the length of the chain above names the level below.
        subject.organizational_unit = vec![format!("DOWNSTREAM-{}", issuer.presented.len().max(1))];
        Ok(CaTemplate {
            serial: random_serial(ca.random.as_ref()),
            subject,
            id: ca.trust_domain.id(),
            public_key: self.key.clone(),
            not_before,
            not_after,
            path_len: None,
            subject_key_id: None,
        })
    }

    fn admit(
        &self,
        template: &CaTemplate,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<(), IssueError> {
        require(template.id == grant.id, "its trust domain is another one")?;
        require(template.public_key == self.key, "its key is another one")?;
        admit_lifetime(template.not_after, None, grant, now)
    }

    async fn sign(
        template: Arc<CaTemplate>,
        issuer: Arc<X509Issuer>,
    ) -> Result<Vec<u8>, IssueError> {
        let signer = issuer.key.as_ref();
        Ok(issue_ca(&template, Some(&issuer.as_issuer()), signer).await?)
    }

    fn compare(
        signed: Vec<u8>,
        template: &CaTemplate,
        issuer: &X509Issuer,
        now: SystemTime,
    ) -> Result<IssuedX509, IssueError> {
        let certificate = read(&signed)?;
        require(certificate.is_ca(), "it is not a CA's")?;
        compare_with_template(
            &certificate,
            &Expected {
                serial: &template.serial,
                public_key: &template.public_key,
                not_after: template.not_after,
            },
        )?;
        require(
            certificate.uris() == [template.id.as_str()],
            "its trust domain is another one",
        )?;
        check_issuer(&certificate, issuer, now)?;
        Ok(issued(template.id.clone(), &certificate, &issuer.presented))
    }

    fn describe(issued: &IssuedX509, fields: &mut Fields) {
        describe_x509(issued, fields);
    }
}

/// What every X.509 template says.
struct Expected<'a> {
    serial: &'a [u8],
    public_key: &'a PublicKey,
    not_after: SystemTime,
}

fn read(der: &[u8]) -> Result<Certificate, IssueError> {
    Certificate::from_der(der).map_err(|_unreadable| mismatch("it cannot be read"))
}

fn compare_with_template(
    certificate: &Certificate,
    expected: &Expected<'_>,
) -> Result<(), IssueError> {
    require(
        certificate
            .serial_bytes()
            .ends_with(significant(expected.serial)),
        "its serial number is another one",
    )?;
    require(
        certificate.public_key() == expected.public_key,
        "its key is another one",
    )?;
    require(
        unix_seconds(certificate.not_after()) <= unix_seconds(expected.not_after),
        "it is valid for longer",
    )
}

fn check_issuer(
    certificate: &Certificate,
    issuer: &X509Issuer,
    now: SystemTime,
) -> Result<(), IssueError> {
    require(
        certificate.issuer_der() == issuer.certificate.subject_der(),
        "its issuer is another one",
    )?;
    require(
        certificate.authority_key_id() == Some(issuer.key_id()),
        "its issuer's key is another one",
    )?;
    require(certificate.not_before() <= now, "it is not valid yet")?;
    require(certificate.not_after() > now, "it has expired")?;
    require(
        certificate.not_after() <= issuer.certificate.not_after(),
        "it outlives its issuer",
    )?;
    require(
        certificate.signature_scheme() == issuer.key.public_key().x509_scheme(),
        "it is signed in another way",
    )
}

/// A serial number without leading zeros. DER drops them, and adds one where the first bit is set, so the encoded number ends
/// with these bytes.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}

fn issued(id: SpiffeId, certificate: &Certificate, presented: &[Arc<[u8]>]) -> IssuedX509 {
    let mut chain = Vec::with_capacity(presented.len() + 1);
    chain.push(Arc::from(certificate.der()));
    chain.extend(presented.iter().cloned());
    IssuedX509 {
        id,
        chain,
        serial: serial_to_decimal(certificate.serial_bytes()),
        not_before: certificate.not_before(),
        not_after: certificate.not_after(),
    }
}

fn describe_x509(issued: &IssuedX509, fields: &mut Fields) {
    fields.add("serial_num", &issued.serial);
    fields.add("expires_at", unix_seconds(issued.not_after));
}
