//! Makes keys and certificates.
//!
//! The authority's certificate is always made from the same parameters ([`authority_params`]), so that issuing needs
//! nothing but its key. Two clusters share that subject name; the signatures tell them apart.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::ClusterError;

/// A certificate and its key, both as PEM text.
pub(super) struct Issued {
    pub(super) cert_pem: String,
    pub(super) key_pem: String,
}

fn failed(name: &str) -> impl Fn(rcgen::Error) -> ClusterError {
    move |e| ClusterError::Issue { name: name.to_owned(), why: e.to_string() }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("mosix cluster authority");
    // It signs members only, never another authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Fixed dates: a node whose clock was reset must still be able to come back.
fn set_validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
}

/// A new authority.
pub(super) fn new_authority() -> Result<Issued, ClusterError> {
    let failed = failed("the cluster's authority");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
    let cert = authority_params().self_signed(&key).map_err(&failed)?;
    Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A certificate for a member, valid as client and as server, with the member's name as its one DNS name.
pub(super) fn member(ca_key_pem: &[u8], name: &str) -> Result<Issued, ClusterError> {
    let failed = failed(name);
    let ca_key = std::str::from_utf8(ca_key_pem)
        .map_err(|_| ClusterError::Issue { name: name.to_owned(), why: "ca.key is not a PEM file".to_owned() })?;
    let issuer = Issuer::new(authority_params(), KeyPair::from_pem(ca_key).map_err(&failed)?);
    let mut params = CertificateParams::new([name.to_owned()]).map_err(&failed)?;
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
    let cert = params.signed_by(&key, &issuer).map_err(&failed)?;
    Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// 32 bytes from the system's generator.
pub(super) fn random_key() -> Result<[u8; 32], ClusterError> {
    let mut key = [0_u8; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| ClusterError::Issue {
        name: "gossip.key".to_owned(),
        why: "the system's random number generator failed".to_owned(),
    })?;
    Ok(key)
}
