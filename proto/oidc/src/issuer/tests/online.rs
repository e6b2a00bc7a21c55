//! What is fetched, when, and how often.

use std::time::Duration;

use super::*;
use crate::testing::server::{Page, Server};

fn token(signer: &Signer, id: &str, server: &Server) -> String {
    signer.token(id, &claims(json!({"iss": server.url})))
}

async fn started() -> (Signer, Server, Issuer) {
    let signer = Signer::es256();
    let server = Server::start(&signer.jwks("one")).await;
    let issuer = Issuer::new(server.configuration()).unwrap();
    (signer, server, issuer)
}

#[tokio::test]
async fn keys_are_fetched_once_and_kept() {
    let (signer, server, issuer) = started().await;
    for seconds in [0, 1, 60, 299] {
        let token = token(&signer, "one", &server);
        issuer.verify(&token, at(seconds)).await.unwrap();
    }
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_rotated_key_is_fetched_when_it_is_first_seen() {
    let (signer, server, issuer) = started().await;
    issuer
        .verify(&token(&signer, "one", &server), at(0))
        .await
        .unwrap();
    let rotated = Signer::es256();
    server.set("/keys", Page::Json(rotated.jwks("two")));
    let new = token(&rotated, "two", &server);
    // Also right after the last fetch.
    issuer.verify(&new, at(0)).await.unwrap();
    assert_eq!(server.requests(), 4);
    // The old key is gone with the new document; asking for it uses up the third fetch.
    let old = token(&signer, "one", &server);
    for seconds in [1, 2] {
        let refused = issuer.verify(&old, at(seconds)).await.unwrap_err();
        assert!(matches!(refused, Refused::UnknownKey { .. }), "{refused}");
        assert_eq!(server.requests(), 6);
    }
    // A rotation meanwhile is noticed when the first of the three is thirty seconds ago.
    let third = Signer::es256();
    server.set("/keys", Page::Json(third.jwks("three")));
    let newest = token(&third, "three", &server);
    let refused = issuer.verify(&newest, at(29)).await.unwrap_err();
    assert!(matches!(refused, Refused::UnknownKey { .. }), "{refused}");
    issuer.verify(&newest, at(30)).await.unwrap();
    assert_eq!(server.requests(), 8);
}

/// A thousand tokens with ever new key ids make three fetches in thirty seconds.
#[tokio::test]
async fn a_storm_of_key_ids_is_three_fetches() {
    let (signer, server, issuer) = started().await;
    issuer
        .verify(&token(&signer, "one", &server), at(0))
        .await
        .unwrap();
    let issuer = Arc::new(issuer);
    let stranger = Signer::es256();
    // Three in every thirty seconds, the first of all among them; each is two requests.
    for (seconds, most) in [(10, 6), (15, 6), (29, 6), (45, 12)] {
        let mut storm = tokio::task::JoinSet::new();
        for n in 0..300 {
            let token = token(&stranger, &format!("{seconds}-{n}"), &server);
            let issuer = issuer.clone();
            storm.spawn(async move { issuer.verify(&token, at(seconds)).await });
        }
        for outcome in storm.join_all().await {
            let refused = outcome.unwrap_err();
            assert!(matches!(refused, Refused::UnknownKey { .. }), "{refused}");
        }
        assert!(server.requests() <= most, "after {seconds} s");
    }
}

/// Expired tokens of a retired key, as a forgotten script sends them, ask nobody.
#[tokio::test]
async fn what_is_refused_anyway_fetches_nothing() {
    let (_, server, issuer) = started().await;
    let stranger = Signer::es256();
    for more in [
        json!({"exp": NOW - 1}),
        json!({"aud": "other"}),
        json!({"nbf": NOW + 500}),
        json!({"iss": "https://evil.example"}),
    ] {
        let mut all = claims(json!({"iss": server.url}));
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        issuer
            .verify(&stranger.token("k", &all), at(0))
            .await
            .unwrap_err();
    }
    assert_eq!(server.requests(), 0);
}

/// Who waits for a fetch and goes away does not end it: otherwise anybody could keep a gateway
/// from ever learning a new key.
#[tokio::test]
async fn a_caller_who_goes_away_does_not_stop_the_fetch() {
    let (signer, server, issuer) = started().await;
    let good = token(&signer, "one", &server);
    {
        let mut first = Box::pin(issuer.verify(&good, at(0)));
        // One poll begins the fetch; then the caller is gone.
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(first.as_mut().poll(context).is_ready())
        });
        assert!(!polled.await);
    }
    issuer.verify(&good, at(1)).await.unwrap();
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn stale_keys_are_fetched_again_and_go_on_when_the_issuer_is_down() {
    let (signer, server, issuer) = started().await;
    let good = token(&signer, "one", &server);
    let good = |_: u64| good.clone();
    issuer.verify(&good(0), at(0)).await.unwrap();
    server.set("/.well-known/openid-configuration", Page::Status(500));
    // Stale: fetched again beside the request, which has its answer from what is known.
    issuer.verify(&good(1), at(300)).await.unwrap();
    issuer.refresh(at(300)).await.unwrap();
    assert_eq!(server.requests(), 3);
    let Keys::Fetched(source) = &issuer.keys else {
        panic!("fetched")
    };
    let failure = source.failure().unwrap();
    assert!(failure.contains("500"), "{failure}");
    let long_lived = signer.token(
        "one",
        &claims(json!({"iss": server.url, "exp": NOW + 90_000})),
    );
    issuer.verify(&long_lived, at(86_400)).await.unwrap();
}

#[tokio::test]
async fn max_age_is_heeded_within_bounds() {
    for (cache, fresh, stale) in [
        ("public, max-age=1800", 1799, 1800),
        ("max-age=1", 299, 300),
        ("max-age=99999999", 3599, 3600),
        ("max-age=abc", 299, 300),
    ] {
        let signer = Signer::es256();
        let server = Server::start("{}").await;
        server.set("/keys", Page::CachedJson(signer.jwks("one"), cache));
        let issuer = Issuer::new(server.configuration()).unwrap();
        let token = signer.token(
            "one",
            &claims(json!({"iss": server.url, "exp": NOW + 90_000})),
        );
        issuer.verify(&token, at(0)).await.unwrap();
        issuer.verify(&token, at(fresh)).await.unwrap();
        let Keys::Fetched(source) = &issuer.keys else {
            panic!("fetched")
        };
        assert_eq!(server.requests(), 2, "{cache}");
        issuer.verify(&token, at(stale)).await.unwrap();
        source.ask_again(at(stale)).await;
        assert_eq!(server.requests(), 4, "{cache}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_stop_fetches() {
    let (signer, server, issuer) = started().await;
    issuer
        .verify(&token(&signer, "one", &server), at(1000 * 60))
        .await
        .unwrap_err();
    issuer.refresh(at(1_000_000)).await.unwrap();
    let rotated = Signer::es256();
    server.set("/keys", Page::Json(rotated.jwks("two")));
    issuer
        .verify(&token(&rotated, "two", &server), at(0))
        .await
        .unwrap();
}

async fn unavailable(server: &Server, signer: &Signer) -> String {
    let issuer = Issuer::new(server.configuration()).unwrap();
    let refused = issuer
        .verify(&token(signer, "one", server), at(0))
        .await
        .unwrap_err();
    assert!(refused.is_unavailable(), "{refused}");
    refused.to_string()
}

#[tokio::test]
async fn hostile_documents_give_no_keys() {
    let (signer, server, _) = started().await;
    let stranger = Server::start(&signer.jwks("one")).await;
    let discovery = "/.well-known/openid-configuration";
    let text = |page| match page {
        Page::Json(text) => text,
        _ => String::new(),
    };
    for (path, page, says) in [
        (
            discovery,
            stranger.discovery("/keys"),
            "is of another issuer",
        ),
        // Another's name over keys that can be had.
        (
            discovery,
            Page::Json(
                json!({"issuer": stranger.url, "jwks_uri": format!("{}/keys", server.url)})
                    .to_string(),
            ),
            "is of another issuer",
        ),
        (
            discovery,
            Page::Json(text(server.discovery("/keys")).replace("https://", "https:///")),
            "another issuer",
        ),
        (
            discovery,
            Page::Json(
                json!({"issuer": server.url, "jwks_uri": "http://127.0.0.1/keys"}).to_string(),
            ),
            "is not an https URL",
        ),
        (
            discovery,
            Page::Json(json!({"issuer": server.url, "jwks_uri": "file:///etc/passwd"}).to_string()),
            "is not an https URL",
        ),
        (
            discovery,
            Page::Json("[]".into()),
            "is no discovery document",
        ),
        (discovery, Page::Endless, "more than 1048576 bytes"),
        (
            discovery,
            Page::Redirect(format!("{}{discovery}", stranger.url)),
            "redirected to another host",
        ),
        (
            discovery,
            Page::Redirect(discovery.into()),
            "redirected to another host, or too often",
        ),
        (discovery, Page::Status(404), "404"),
        ("/keys", Page::Endless, "more than 1048576 bytes"),
        ("/keys", Page::Json(r#"{"keys":[]}"#.into()), "has no key"),
        ("/keys", Page::Json("<html>".into()), "not a JWK Set"),
        (
            "/keys",
            Page::Redirect(format!("{}/keys", stranger.url)),
            "redirected to another host",
        ),
        (
            "/keys",
            Page::Redirect("http://127.0.0.1:1/keys".into()),
            "redirected to another host",
        ),
    ] {
        server.set(discovery, server.discovery("/keys"));
        server.set("/keys", Page::Json(signer.jwks("one")));
        server.set(path, page);
        let refused = unavailable(&server, &signer).await;
        assert!(refused.contains(says), "{refused} lacks {says}");
    }
    assert_eq!(stranger.requests(), 0);
}

/// Nothing is wrong with it but its size, or with one of its keys but their number.
#[tokio::test]
async fn a_huge_key_set_is_not_read() {
    let (signer, server, _) = started().await;
    let padded = json!({"keys": [signer.jwk("one")], "padding": "x".repeat(2 << 20)});
    server.set("/keys", Page::Json(padded.to_string()));
    let refused = unavailable(&server, &signer).await;
    assert!(refused.contains("more than 1048576 bytes"), "{refused}");

    let other = Signer::ed25519();
    let mut keys: Vec<Value> = (0..128).map(|n| other.jwk(&n.to_string())).collect();
    keys.push(signer.jwk("one"));
    server.set("/keys", Page::Json(json!({"keys": keys}).to_string()));
    let refused = Issuer::new(server.configuration())
        .unwrap()
        .verify(&token(&signer, "one", &server), at(0))
        .await
        .unwrap_err();
    assert!(matches!(refused, Refused::UnknownKey { .. }), "{refused}");
}

/// A key id is a name, whatever it looks like; and where the header says that keys are, nobody looks.
#[tokio::test]
async fn a_key_id_that_is_a_url_is_not_fetched() {
    let (_, server, issuer) = started().await;
    let stranger = Signer::es256();
    server.set("/strangers", Page::Json(stranger.jwks("one")));
    let url = format!("{}/strangers", server.url);
    for header in [
        json!({"alg": "ES256", "kid": url}),
        json!({"alg": "ES256", "kid": "one", "jku": url}),
        json!({"alg": "ES256", "kid": url, "jku": url, "x5u": url}),
    ] {
        let token = stranger.token_with(&header, &claims(json!({"iss": server.url})));
        let refused = issuer.verify(&token, at(0)).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Refused::UnknownKey { .. } | Refused::Signature { .. }
            ),
            "{header}: {refused}"
        );
    }
    // The issuer's two documents, thrice, as for any key that isn't known.
    assert_eq!(server.requests(), 6);
}

#[tokio::test]
async fn a_redirect_on_the_same_host_is_followed() {
    let (signer, server, issuer) = started().await;
    server.set("/moved", Page::Json(signer.jwks("one")));
    server.set("/keys", Page::Redirect("/moved".into()));
    issuer
        .verify(&token(&signer, "one", &server), at(0))
        .await
        .unwrap();
}

/// The certificate is another authority's.
#[tokio::test]
async fn a_stranger_on_the_way_is_not_asked() {
    let (signer, server, _) = started().await;
    let other = Server::start("{}").await;
    let configuration = IssuerConfiguration {
        certificate_authority: Some(other.authority.clone()),
        ..server.configuration()
    };
    let system = IssuerConfiguration {
        certificate_authority: None,
        ..server.configuration()
    };
    for configuration in [configuration, system] {
        let issuer = Issuer::new(configuration).unwrap();
        let refused = issuer
            .verify(&token(&signer, "one", &server), at(0))
            .await
            .unwrap_err();
        assert!(refused.is_unavailable(), "{refused}");
    }
    assert_eq!(server.requests(), 0);
}

/// An issuer that accepts and says nothing holds callers for eleven seconds, all the same ones.
#[tokio::test]
async fn an_issuer_that_hangs_holds_nobody_for_long() {
    let (signer, server, issuer) = started().await;
    server.set("/keys", Page::Hangs);
    let issuer = Arc::new(issuer);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (issuer, token) = (issuer.clone(), token(&signer, "one", &server));
        callers.spawn(async move { issuer.verify(&token, at(0)).await });
    }
    let bound = Duration::from_secs(20);
    let outcomes = tokio::time::timeout(bound, callers.join_all())
        .await
        .unwrap();
    for outcome in outcomes {
        let refused = outcome.unwrap_err();
        assert!(refused.is_unavailable(), "{refused}");
        assert!(
            refused.to_string().contains("no answer within 10 s")
                || refused.to_string().contains("timed out"),
            "{refused}"
        );
    }
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_discovery_url_is_used_as_it_is() {
    let (signer, server, _) = started().await;
    let document = server.discovery("/keys");
    server.set("/.well-known/openid-configuration", Page::Status(404));
    server.set("/elsewhere", document);
    let issuer = Issuer::new(IssuerConfiguration {
        discovery_url: Some(format!("{}/elsewhere", server.url)),
        ..server.configuration()
    });
    issuer
        .unwrap()
        .verify(&token(&signer, "one", &server), at(0))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_like_issuer_keeps_the_keys() {
    let (signer, server, issuer) = started().await;
    issuer.refresh(at(0)).await.unwrap();
    let changed = IssuerConfiguration {
        audiences: vec!["towline".into(), "more".into()],
        ..server.configuration()
    };
    let same = Issuer::like(changed, Some(&issuer)).unwrap();
    same.verify(&token(&signer, "one", &server), at(1))
        .await
        .unwrap();
    assert_eq!(server.requests(), 2);
    let elsewhere = IssuerConfiguration {
        discovery_url: Some(format!("{}/x", server.url)),
        ..server.configuration()
    };
    let other = Issuer::like(elsewhere, Some(&issuer)).unwrap();
    other
        .verify(&token(&signer, "one", &server), at(1))
        .await
        .unwrap_err();
}
