//! What is verified when the keys are at hand.

use super::*;

pub(super) fn issuer(jwks: String) -> Issuer {
    Issuer::new(IssuerConfiguration {
        url: "https://issuer.example".into(),
        audiences: vec!["towline".into(), "other".into()],
        jwks: Some(jwks),
        ..IssuerConfiguration::default()
    })
    .unwrap()
}

#[tokio::test]
async fn every_algorithm_verifies_with_its_key() {
    let rsa = Signer::rsa();
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let token = rsa.token_with(&json!({"alg": algorithm, "kid": "k"}), &claims(json!({})));
        issuer(rsa.jwks("k")).verify(&token, at(0)).await.unwrap();
    }
    for signer in [Signer::es256(), Signer::es512(), Signer::ed25519()] {
        let token = signer.token("k", &claims(json!({})));
        let claims = issuer(signer.jwks("k"))
            .verify(&token, at(0))
            .await
            .unwrap();
        assert_eq!(claims.subject(), Some("alice"));
        assert_eq!(claims.expires, at(300));
        assert_eq!(claims.issuer, "https://issuer.example");
    }
}

#[tokio::test]
async fn a_token_without_a_key_id_tries_all_keys() {
    let (old, new) = (Signer::es256(), Signer::es256());
    let jwks = json!({"keys": [old.jwk("old"), new.jwk("new")]}).to_string();
    let token = new.token_with(&json!({"alg": "ES256"}), &claims(json!({})));
    issuer(jwks.clone()).verify(&token, at(0)).await.unwrap();
    let wrong = new.token("old", &claims(json!({})));
    let refused = issuer(jwks).verify(&wrong, at(0)).await.unwrap_err();
    assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
}

#[tokio::test]
async fn times_and_audiences_are_those_of_kube_apiserver() {
    let signer = Signer::es256();
    let issuer = issuer(signer.jwks("k"));
    for (more, says) in [
        (
            json!({"exp": NOW - 1}),
            "token is expired since 2027-01-15T07:59:59Z",
        ),
        (json!({"exp": NOW}), ""),
        (json!({"exp": 1e300}), ""),
        (json!({"exp": -5}), "expired since 1970-01-01T00:00:00Z"),
        (json!({"exp": null}), "its claim exp is missing"),
        (
            json!({"exp": "1900000000"}),
            "its claim exp is not a number",
        ),
        (json!({"nbf": NOW + 60}), ""),
        (
            json!({"nbf": NOW + 61}),
            "not valid before 2027-01-15T08:01:01Z (nbf)",
        ),
        (
            json!({"iat": NOW + 61}),
            "not valid before 2027-01-15T08:01:01Z (iat)",
        ),
        (
            json!({"aud": "towline2"}),
            r#"wrong audience: "towline2" has none of towline, other"#,
        ),
        (json!({"aud": ["x", "other"]}), ""),
        (json!({"aud": []}), "wrong audience"),
        (json!({"aud": null}), "wrong audience"),
        (json!({"aud": ["towline", 5]}), "its claim aud is neither"),
        (json!({"aud": {"towline": 1}}), "its claim aud is neither"),
        (json!({"iss": "https://issuer.example/"}), "another issuer"),
        (json!({"iss": null}), "its claim iss is missing"),
        (json!({"sub": 5}), "its claim sub is not a string"),
        (json!({"nonce": []}), "its claim nonce is not a string"),
        (
            json!({"iss": ["https://issuer.example"]}),
            "its claim iss is not a string",
        ),
    ] {
        let token = signer.token("k", &claims(more.clone()));
        match issuer.verify(&token, at(0)).await {
            Ok(_) => assert!(says.is_empty(), "{more} was taken"),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(
                    !says.is_empty() && refused.contains(says),
                    "{more}: {refused}"
                );
            }
        }
    }
}

#[test]
fn a_wrong_configuration_names_the_field() {
    let good = IssuerConfiguration {
        url: "https://issuer.example".into(),
        audiences: vec!["a".into()],
        ..IssuerConfiguration::default()
    };
    let wrong = |change: fn(&mut IssuerConfiguration)| {
        let mut configuration = good.clone();
        change(&mut configuration);
        Issuer::new(configuration).unwrap_err().to_string()
    };
    for (error, says) in [
        (wrong(|c| c.url = "http://issuer.example".into()), "url: "),
        (
            wrong(|c| c.url = "https://u:p@issuer.example".into()),
            "url: ",
        ),
        (wrong(|c| c.audiences.clear()), "audiences: "),
        (wrong(|c| c.jwks = Some("{}".into())), "jwks: not a JWK Set"),
        (
            wrong(|c| c.jwks = Some(r#"{"keys":[]}"#.into())),
            "jwks: the JWK Set has no key",
        ),
        (
            wrong(|c| c.certificate_authority = Some("x".into())),
            "certificateAuthority: ",
        ),
    ] {
        assert!(error.starts_with(says), "{error}");
    }
}
