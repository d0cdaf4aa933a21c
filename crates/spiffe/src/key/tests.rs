use super::*;

fn pairs() -> Vec<(KeyType, KeyPair)> {
    // RSA-4096 takes seconds to generate; its handling is that of RSA-2048.
    [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048]
        .map(|ty| (ty, KeyPair::generate(ty).unwrap()))
        .into()
}

#[test]
fn keys_survive_pkcs8_spki_pem_and_jwk() {
    for (ty, pair) in pairs() {
        let public = pair.public_key();
        assert_eq!(public.key_type(), Some(ty));
        let pkcs8 = pair.to_pkcs8_der().unwrap();
        assert_eq!(
            KeyPair::from_pkcs8_der(pkcs8.expose())
                .unwrap()
                .public_key(),
            public
        );
        assert_eq!(
            &PublicKey::from_spki_der(public.spki_der()).unwrap(),
            public
        );
        assert_eq!(&PublicKey::from_jwk(&public.to_jwk()).unwrap(), public);
        let mut pem = String::new();
        crate::pem::write_block(&mut pem, "CERTIFICATE", &[0]);
        crate::pem::write_block(&mut pem, "PRIVATE KEY", pkcs8.expose());
        assert_eq!(KeyPair::from_pem(&pem).unwrap().public_key(), public);
        assert!(!format!("{pair:?}").contains("private: "));
    }
}

#[test]
fn signatures_verify_in_both_forms_and_fail_when_touched() {
    for (ty, pair) in pairs() {
        let (scheme, alg) = (ty.x509_scheme(), ty.jws_algorithm());
        let signature = pair.sign_now(scheme, b"message").unwrap();
        let public = pair.public_key();
        assert_eq!(public.verify_x509(scheme, b"message", &signature), Ok(()));
        assert_eq!(
            public.verify_x509(scheme, b"massage", &signature),
            Err(VerifyError::BadSignature)
        );
        let raw = jws_signature(alg, pair.sign_now(alg.scheme(), b"message").unwrap()).unwrap();
        assert_eq!(public.verify_jws(alg, b"message", &raw), Ok(()));
        assert_eq!(
            public.verify_jws(alg, b"message", &raw[1..]),
            Err(VerifyError::BadSignature)
        );
        assert_eq!(
            public.verify_jws(alg, b"message", b""),
            Err(VerifyError::BadSignature)
        );
    }
}

#[test]
fn js_14_algorithms_of_another_family_or_curve_are_refused() {
    for (ty, pair) in pairs() {
        for alg in JwsAlgorithm::ALL {
            let fits = match ty {
                KeyType::EcP256 => alg == JwsAlgorithm::ES256,
                KeyType::EcP384 => alg == JwsAlgorithm::ES384,
                KeyType::Rsa2048 | KeyType::Rsa4096 => !alg.as_str().starts_with("ES"),
            };
            assert_eq!(pair.public_key().fits(alg), fits);
            let outcome = pair.public_key().verify_jws(alg, b"m", &[0; 64]);
            let expected = if fits {
                VerifyError::BadSignature
            } else {
                VerifyError::WrongAlgorithm
            };
            assert_eq!(outcome, Err(expected), "{ty} {alg}");
        }
    }
    let (_, ec) = &pairs()[0];
    assert!(matches!(
        ec.sign_now(SignatureScheme::RsaPkcs1Sha256, b"m"),
        Err(SignError::Unsupported(_))
    ));
}

#[test]
fn subject_key_id_is_sha1_of_the_bit_string() {
    // RFC 7517 appendix A.1's EC key; the digest was computed by another implementation.
    let jwk = Jwk {
        kty: Some("EC".into()),
        crv: Some("P-256".into()),
        x: Some("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4".into()),
        y: Some("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM".into()),
        ..Jwk::default()
    };
    let key = PublicKey::from_jwk(&jwk).unwrap();
    let point = &key.spki_der()[key.spki_der().len() - 65..];
    let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, point);
    assert_eq!(key.subject_key_id(), sha1.as_ref());
}

#[test]
fn p_521_keys_verify_but_are_not_ours_to_generate() {
    use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let spki = spki::encode_ec(spki::Curve::P521, pair.public_key().as_ref()).unwrap();
    let key = PublicKey::from_spki_der(&spki).unwrap();
    let signature = pair
        .sign(&aws_lc_rs::rand::SystemRandom::new(), b"m")
        .unwrap();
    assert_eq!(
        key.verify_jws(JwsAlgorithm::ES512, b"m", signature.as_ref()),
        Ok(())
    );
    assert_eq!(key.key_type(), None);
    assert_eq!(PublicKey::from_jwk(&key.to_jwk()).unwrap(), key);
}

#[test]
fn refuses_public_keys_that_are_malformed_unknown_or_off_the_curve() {
    let (_, pair) = &pairs()[0];
    let good = pair.public_key().spki_der().to_vec();
    let mut trailing = good.clone();
    trailing.push(0);
    assert_eq!(
        PublicKey::from_spki_der(&trailing).unwrap_err(),
        PublicKeyError::Malformed
    );
    assert_eq!(
        PublicKey::from_spki_der(&good[..good.len() - 1]).unwrap_err(),
        PublicKeyError::Malformed
    );
    let mut off_curve = good.clone();
    *off_curve.last_mut().unwrap() ^= 1;
    assert_eq!(
        PublicKey::from_spki_der(&off_curve).unwrap_err(),
        PublicKeyError::Invalid
    );
    let ed25519 = [
        &b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..],
        &[7; 32],
    ]
    .concat();
    assert_eq!(
        PublicKey::from_spki_der(&ed25519).unwrap_err(),
        PublicKeyError::UnsupportedKind
    );
    let small = spki::encode_rsa(&[0xff; 128], &[1, 0, 1]).unwrap();
    assert_eq!(
        PublicKey::from_spki_der(&small).unwrap_err(),
        PublicKeyError::RsaSize
    );
}

#[test]
fn refuses_broken_jwks_and_tells_unknown_kinds_apart() {
    let (_, pair) = &pairs()[0];
    let good = pair.public_key().to_jwk();
    let unknown = [
        Jwk {
            kty: Some("FOO".into()),
            ..good.clone()
        },
        Jwk {
            kty: Some("oct".into()),
            ..good.clone()
        },
        Jwk {
            crv: Some("secp256k1".into()),
            ..good.clone()
        },
    ];
    for jwk in unknown {
        assert_eq!(PublicKey::from_jwk(&jwk), Err(JwkError::UnknownKind));
    }
    let broken = [
        Jwk {
            kty: None,
            ..good.clone()
        },
        Jwk {
            crv: None,
            ..good.clone()
        },
        Jwk {
            x: None,
            ..good.clone()
        },
        Jwk {
            x: Some("AQ".into()),
            ..good.clone()
        },
        Jwk {
            x: Some("A".repeat(10_000)),
            ..good.clone()
        },
        Jwk {
            y: Some("!".repeat(43)),
            ..good.clone()
        },
        Jwk {
            crv: Some("P-384".into()),
            ..good
        },
    ];
    for jwk in broken {
        assert_eq!(PublicKey::from_jwk(&jwk), Err(JwkError::Malformed));
    }
}

#[test]
fn refuses_private_keys_of_other_kinds() {
    assert_eq!(
        KeyPair::from_pkcs8_der(b"nonsense").unwrap_err(),
        KeyError::Unsupported
    );
    assert_eq!(
        KeyPair::from_pem("no key here").unwrap_err(),
        KeyError::NoPem
    );
    KeyType::parse("ec-p521").unwrap_err();
    for ty in KeyType::ALL {
        assert_eq!(KeyType::parse(ty.as_str()), Ok(ty));
    }
}
