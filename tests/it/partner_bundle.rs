//! A partner's bundle with authorities of kinds that we do not know: its others serve, and nobody loses an identity.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use harness::deployment::{CHANGE, own_user};
use harness::{Deployment, Entry, id};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType, SignatureAlgorithm};
use serde_json::{Value, json};

const PARTNER: &str = "spiffe://partner.example";

/// An authority of the partner, as DER.
fn root(key: &KeyPair) -> Result<Vec<u8>> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
        .subject_alt_names
        .push(SanType::URI(PARTNER.try_into()?));
    Ok(parameters.self_signed(key)?.der().to_vec())
}

fn x509_key(key: &KeyPair, mut jwk: Value) -> Result<Value> {
    *jwk.get_mut("use").context("no use")? = json!("x509-svid");
    let fields = jwk.as_object_mut().context("no object")?;
    fields.remove("kid");
    fields.insert(
        "x5c".to_owned(),
        json!([BASE64_STANDARD.encode(root(key)?)]),
    );
    Ok(jwk)
}

/// The public key as a JWK that verifies JWT-SVIDs.
fn jwk(key: &KeyPair) -> Value {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    match key.public_key_raw() {
        // An uncompressed point.
        [4, point @ ..] if point.len() == 64 => {
            let (x, y) = point.split_at(32);
            json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y), "kid": "known", "use": "jwt-svid" })
        }
        raw => {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(raw), "kid": "unknown", "use": "jwt-svid" })
        }
    }
}

fn generate(algorithm: &'static SignatureAlgorithm) -> Result<KeyPair> {
    Ok(KeyPair::generate_for(algorithm)?)
}

#[test]
fn authorities_of_an_unknown_key_type_take_neither_the_others_nor_anybodys_identity() -> Result<()>
{
    let deployment = Deployment::start()?;
    deployment.register("/web")?;
    let (known, unknown) = (
        generate(&rcgen::PKCS_ECDSA_P256_SHA256)?,
        generate(&rcgen::PKCS_ED25519)?,
    );
    let keys = json!({ "keys": [
        x509_key(&unknown, jwk(&unknown))?,
        jwk(&unknown),
        x509_key(&known, jwk(&known))?,
        jwk(&known),
    ], "spiffe_sequence": 1, "spiffe_refresh_hint": 300 });
    let file = deployment.server.dir().join("partner.json");
    std::fs::write(&file, keys.to_string())?;
    let file = file.display().to_string();
    deployment
        .server
        .cli(&[
            "bundle", "set", "-id", PARTNER, "-format", "spiffe", "-path", &file,
        ])?
        .ok()?;
    let friend = Entry::new(&Deployment::node(), &id("/friend"), &own_user())
        .flag("-federatesWith", PARTNER);
    deployment.server.create_entry(&friend)?;

    let answer = deployment
        .agent
        .wait_for_ids(&[&id("/web"), &id("/friend")], CHANGE)?;
    let bundle = answer
        .get("federated_bundles")
        .and_then(|bundles| bundles.get(PARTNER))
        .and_then(Value::as_str)
        .with_context(|| format!("no bundle of the partner: {answer}"))?;
    let bundle = BASE64_STANDARD.decode(bundle)?;
    let key = known.public_key_raw();
    ensure!(
        bundle.windows(key.len()).any(|part| part == key),
        "the partner's known authority is missing"
    );
    let token = deployment
        .agent
        .cli(&["api", "fetch", "jwt", "-audience", "a"])?
        .ok()?;
    ensure!(token.contains(&id("/friend")), "{token}");
    Ok(())
}
