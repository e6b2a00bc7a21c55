//! Tokens that were made to get in.

use aws_lc_rs::hmac;

use super::offline::issuer;
use super::*;

async fn refused(issuer: &Issuer, token: &str) -> Refused {
    issuer.verify(token, at(0)).await.unwrap_err()
}

/// RFC 8725 §2.1: the public key's bytes as the secret of an HMAC.
#[tokio::test]
async fn a_public_key_is_no_secret() {
    let rsa = Signer::rsa();
    let jwks = rsa.jwks("k");
    let issuer = issuer(jwks.clone());
    let jwk: Value = rsa.jwk("k");
    let modulus = jwk["n"].as_str().unwrap();
    for secret in [
        jwks.as_bytes(),
        modulus.as_bytes(),
        jwk.to_string().as_bytes(),
    ] {
        for algorithm in ["HS256", "hs256"] {
            let signed = format!(
                "{}.{}",
                encode(json!({"alg": algorithm, "kid": "k"}).to_string()),
                encode(claims(json!({})).to_string())
            );
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let token = format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())));
            let refused = refused(&issuer, &token).await;
            assert!(matches!(refused, Refused::Algorithm { .. }), "{refused}");
        }
    }
}

/// A symmetric key in the set is never read, so nothing signed with it is believed.
#[tokio::test]
async fn a_symmetric_key_in_the_set_is_not_used() {
    let good = Signer::es256();
    let jwks = json!({"keys": [
        {"kty": "oct", "kid": "k", "alg": "HS256", "k": encode("secret")},
        good.jwk("good"),
    ]});
    let signed = format!(
        "{}.{}",
        encode(r#"{"alg":"HS256","kid":"k"}"#),
        encode(claims(json!({})).to_string())
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    let token = format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())));
    let refused = refused(&issuer(jwks.to_string()), &token).await;
    assert!(matches!(refused, Refused::Algorithm { .. }), "{refused}");
}

#[tokio::test]
async fn an_unsigned_token_is_nobody() {
    let signer = Signer::es256();
    let issuer = issuer(signer.jwks("k"));
    let good = signer.token("k", &claims(json!({})));
    for algorithm in ["none", "None", "NONE", "nOnE", "", "RS257"] {
        let header = encode(json!({"alg": algorithm, "kid": "k"}).to_string());
        let payload = encode(claims(json!({})).to_string());
        for signature in ["", good.rsplit('.').next().unwrap()] {
            let refused = refused(&issuer, &format!("{header}.{payload}.{signature}")).await;
            assert!(matches!(refused, Refused::Algorithm { .. }), "{refused}");
        }
    }
    let (signed, _) = good.rsplit_once('.').unwrap();
    let refused = refused(&issuer, &format!("{signed}.")).await;
    assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
}

/// An algorithm fits one kind of key: an EC signature is not tried with an RSA key, and a key that
/// says what it is for is used for that only.
#[tokio::test]
async fn an_algorithm_fits_its_key_or_none() {
    let (rsa, ec) = (Signer::rsa(), Signer::es256());
    for (jwk, signer, algorithm) in [
        (rsa.jwk("k"), &ec, "ES256"),
        (ec.jwk("k"), &rsa, "RS256"),
        (ec.jwk("k"), &ec, "ES384"),
        (ec.jwk("k"), &ec, "EdDSA"),
        (with(rsa.jwk("k"), "alg", "PS256"), &rsa, "RS256"),
        (with(rsa.jwk("k"), "use", "enc"), &rsa, "RS256"),
    ] {
        let other = Signer::ed25519().jwk("other");
        let issuer = issuer(json!({"keys": [jwk, other]}).to_string());
        let token = signer.token_with(&json!({"alg": algorithm, "kid": "k"}), &claims(json!({})));
        let refused = refused(&issuer, &token).await;
        assert!(matches!(refused, Refused::UnknownKey { .. }), "{refused}");
    }
}

fn with(mut jwk: Value, name: &str, value: &str) -> Value {
    jwk[name] = json!(value);
    jwk
}

#[tokio::test]
async fn a_changed_token_is_not_the_signed_one() {
    let signer = Signer::es256();
    let issuer = issuer(signer.jwks("k"));
    let good = signer.token("k", &claims(json!({})));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let forged = encode(claims(json!({"sub": "root"})).to_string());
    let token = format!("{header}.{forged}.{signature}");
    let refused = refused(&issuer, &token).await;
    assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
}

/// CVE-2022-21449 and its kin: a signature of zeros.
#[tokio::test]
async fn a_signature_of_zeros_is_none() {
    let signer = Signer::es256();
    let good = signer.token("k", &claims(json!({})));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let token = format!("{signed}.{}", encode([0; 64]));
    let refused = refused(&issuer(signer.jwks("k")), &token).await;
    assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
}

/// A header that brings its own key, or says where there is one, is only compared.
#[tokio::test]
async fn keys_in_the_header_are_ignored() {
    let (own, stranger) = (Signer::es256(), Signer::es256());
    let issuer = issuer(own.jwks("k"));
    for header in [
        json!({"alg": "ES256", "kid": "k", "jwk": stranger.jwk("k")}),
        json!({"alg": "ES256", "jwk": stranger.jwk("k")}),
        json!({"alg": "ES256", "kid": "https://evil.example/keys", "jku": "https://evil.example"}),
        json!({"alg": "ES256", "kid": "../../../../dev/null"}),
    ] {
        let token = stranger.token_with(&header, &claims(json!({})));
        let refused = refused(&issuer, &token).await;
        assert!(
            matches!(
                refused,
                Refused::Signature { .. } | Refused::UnknownKey { .. }
            ),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn critical_headers_and_doubled_names_are_refused_though_signed() {
    let signer = Signer::es256();
    let issuer = issuer(signer.jwks("k"));
    let header = r#"{"alg":"ES256","kid":"k"}"#;
    let good = claims(json!({})).to_string();
    let doubled = good.replacen('{', r#"{"sub":"root","#, 1);
    let token = signer.raw(header, &doubled);
    let error = refused(&issuer, &token).await.to_string();
    assert!(error.contains(r#""sub" is there twice"#), "{error}");
    let critical = r#"{"alg":"ES256","kid":"k","crit":["b64"],"b64":false}"#;
    let error = refused(&issuer, &signer.raw(critical, &good)).await;
    assert_eq!(error, Refused::Critical);
}

/// The modulus of an RSA key of 1024 bits, and what it signed: a library that takes such keys is needed to make them.
const WEAK_KEY: &str = "4KjdcG-q73QvyZfpYbWAiJRp0nDGhm4vHjrH7xlFu0NHQBobesa-tR0Mfkmh27ECLgNV0Ecy85Vu9N5n9N5lsNFmJv9xKPkGnCk49Gof7ejlb0x1zZhEKtSsnUH37eeey-wWbqr8dAgyRGjwj1ZbIqpV04NqclSRz1oZWj5qJic";
const SIGNED_BY_IT: &str = "L1FLtF1QBPLbk8PXUUz50EIqS8zSNT192B7mbZUNOSUng9i-3jcprCaHf6Uik9Fye5G2DPi8ORiKnAc-IRK6g1F0KFKFpnfjd9tzgdZa1PnRxkjCtWFe_AxYxY7OSeUng5WtXOOQfV73iuTPdYfvDJD1wdquh13ObicMSAQTdfM";

#[tokio::test]
async fn weak_rsa_keys_verify_nothing() {
    let jwks = |n: &str| json!({"keys": [{"kty": "RSA", "kid": "k", "n": n, "e": "AQAB"}]});
    let signed = format!(
        "{}.{}",
        encode(r#"{"alg":"RS256","kid":"k"}"#),
        encode(
            r#"{"iss":"https://issuer.example","aud":"towline","sub":"alice","exp":1800000300}"#
        )
    );
    for (jwks, token) in [
        (jwks(WEAK_KEY), format!("{signed}.{SIGNED_BY_IT}")),
        (
            jwks(&encode([255; 64])),
            Signer::rsa().token("k", &claims(json!({}))),
        ),
    ] {
        let refused = refused(&issuer(jwks.to_string()), &token).await;
        assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
    }
}
