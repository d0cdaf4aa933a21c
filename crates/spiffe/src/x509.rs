//! X.509 at the level SPIFFE needs: reading certificates, writing them, verifying paths. The issuer, subject and
//! key info of a certificate are kept as the bytes they came in, so what we issue chains byte for byte.

mod algorithm;
pub mod build;
mod certificate;
mod encode;
mod extensions;
mod name;
pub(crate) mod path;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;

pub use build::{
    BuildError, CaTemplate, Issuer, LeafTemplate, build_ca_csr, issue_ca, issue_leaf, random_serial,
};
pub use certificate::{
    Certificate, CertificateError, MAX_CERTIFICATE_LEN, MAX_CERTIFICATES, PemBundleError,
    serial_to_decimal,
};
pub use name::Subject;
pub use path::PathError;

pub(crate) use algorithm::{decode as decode_algorithm, encode as encode_algorithm};
pub(crate) use encode::{tlv, write_san_extension};
pub(crate) use extensions::{
    CRL_SIGN, DIGITAL_SIGNATURE, KEY_CERT_SIGN, alternative_names, oid, read_extension_list,
};
