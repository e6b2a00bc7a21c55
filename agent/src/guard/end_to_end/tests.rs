use std::{collections::BTreeMap, io::Write as _};

use http::Request;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use towline_proto::{
    end_to_end::{Possession, nonce},
    jws::KeyPair,
    wire::{self, Refusal},
};

use super::*;
use crate::guard::{Denied, Guard, tests::Pair};

#[path = "../../../../gateway/tests/api/issuer.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "shared with the gateway's tests"
)]
mod issuer;

use issuer::Issuer;

const MEMBERSHIP: &str = "projects/p/locations/global/memberships/m";
const GATEWAY: &str = "https://gw.example";

/// An identity provider, a person's key, and an agent that believes the provider.
struct Place {
    issuer: Issuer,
    key: KeyPair,
    own: Arc<EndToEnd>,
    file: NamedTempFile,
}

fn entry(issuer: &Issuer) -> Value {
    json!({
        "issuer": {"url": issuer.url, "certificateAuthority": issuer.authority, "audiences": ["towline"]},
        "claimMappings": {
            "username": {"claim": "email", "prefix": ""},
            "groups": {"claim": "groups", "prefix": ""},
            "uid": {"claim": "sub"},
        },
    })
}

fn configuration(entries: &[Value]) -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": entries,
    })
    .to_string()
}

fn load(file: &NamedTempFile) -> Result<EndToEnd, InvalidFile> {
    let settings = Settings {
        file: file.path().to_owned(),
        max_age: Duration::from_secs(3600),
    };
    EndToEnd::load(settings, MEMBERSHIP.parse().unwrap(), GATEWAY)
}

async fn place(more: &[Value]) -> Place {
    let issuer = Issuer::start().await;
    let mut file = NamedTempFile::new().unwrap();
    let mut entries = vec![entry(&issuer)];
    entries.extend_from_slice(more);
    file.write_all(configuration(&entries).as_bytes()).unwrap();
    Place {
        own: Arc::new(load(&file).unwrap()),
        key: KeyPair::generate().unwrap(),
        issuer,
        file,
    }
}

fn grant(user: &str, groups: &[&str]) -> Grant {
    Grant {
        membership: MEMBERSHIP.parse().unwrap(),
        session: "s".into(),
        principal: format!("user:{user}"),
        user: user.into(),
        uid: Some("what the gateway says".into()),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        extra: BTreeMap::from([("by".into(), vec!["the gateway".into()])]),
        iat: 0,
        exp: 0,
    }
}

impl Place {
    fn id_token(&self, more: Value) -> String {
        let mut claims = json!({
            "sub": "u-1", "aud": "towline", "email": "ann@example.org", "groups": ["dev", "ops"],
            "nonce": nonce(&self.key.public()),
        });
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.issuer.sign(claims)
    }

    fn proof(&self, more: Value) -> String {
        let possession = Possession::state(&self.key, MEMBERSHIP, clock::unix_now());
        Proof::new(self.id_token(more), possession).to_header()
    }

    async fn person(&self, grant: &Grant, proof: Option<&str>) -> Result<Person, NotProven> {
        self.own.person(grant, proof, clock::system_now()).await
    }

    /// Of ann, whom the gateway names rightly.
    async fn of_ann(&self, proof: Option<&str>) -> Result<Person, NotProven> {
        let ann = grant("ann@example.org", &["ops", "dev", "system:authenticated"]);
        self.person(&ann, proof).await
    }

    async fn refusal_of_ann(&self, proof: &str) -> String {
        self.of_ann(Some(proof)).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn who_proves_it_is_who_the_proof_says() {
    let place = place(&[]).await;
    let person = place.of_ann(Some(&place.proof(json!({})))).await.unwrap();
    let by_the_proof = Person {
        user: "ann@example.org".into(),
        uid: Some("u-1".into()),
        groups: vec!["dev".into(), "ops".into()],
        extra: BTreeMap::new(),
    };
    assert_eq!(person, by_the_proof);
}

#[tokio::test]
async fn a_gateway_names_nobody_by_itself() {
    let place = place(&[]).await;
    let missing = place.of_ann(None).await.unwrap_err();
    assert!(matches!(missing, NotProven::Missing(_)), "{missing}");
    assert!(
        missing
            .to_string()
            .contains("towline get-credentials m --end-to-end")
    );
    // Ann's proof, for somebody else and for more than she is.
    let proof = place.proof(json!({}));
    let other = grant("root@example.org", &["dev", "ops"]);
    let other = place.person(&other, Some(&proof)).await.unwrap_err();
    assert!(matches!(other, NotProven::User { .. }), "{other}");
    for groups in [&["dev", "ops", "admins"][..], &["dev"], &[]] {
        let other = grant("ann@example.org", groups);
        let other = place.person(&other, Some(&proof)).await.unwrap_err();
        assert!(matches!(other, NotProven::Groups { .. }), "{other}");
    }
}

#[tokio::test]
async fn a_proof_without_its_key_is_none() {
    let place = place(&[]).await;
    let stolen = place.id_token(json!({}));
    // A key of the thief's own, and what the agent of another cluster saw.
    let (thief, now) = (KeyPair::generate().unwrap(), clock::unix_now());
    let own_key = Possession::state(&thief, MEMBERSHIP, now);
    let elsewhere = Possession::state(&place.key, &MEMBERSHIP.replace("/m", "/n"), now);
    let earlier = Possession::state(&place.key, MEMBERSHIP, now - 1_000);
    let later = Possession::state(&place.key, MEMBERSHIP, now + 1_000);
    for (possession, words) in [
        (own_key, "does not commit"),
        (elsewhere, "the statement is for"),
        (earlier, "may be 300 s old"),
        (later, "may be 300 s old"),
    ] {
        let said = place
            .refusal_of_ann(&Proof::new(stolen.clone(), possession).to_header())
            .await;
        assert!(said.contains(words), "{said}");
    }
    // Nor is an ID token of an ordinary sign-in one.
    for nonce in [json!("n"), json!(""), Value::Null] {
        let said = place
            .refusal_of_ann(&place.proof(json!({"nonce": nonce})))
            .await;
        assert!(said.contains("does not commit"), "{said}");
    }
}

#[tokio::test]
async fn an_id_token_is_the_issuers_and_not_too_old() {
    let place = place(&[]).await;
    let now = clock::unix_now();
    // Expired, and the sign-in is not older than the agent takes it.
    let expired = json!({"iat": now - 3_500, "exp": now - 3_000});
    place.of_ann(Some(&place.proof(expired))).await.unwrap();
    let stranger = Issuer::unreachable(&place.issuer.url);
    let forged = stranger.sign(json!({
        "sub": "u-1", "aud": "towline", "email": "ann@example.org", "groups": ["dev", "ops"],
        "nonce": nonce(&place.key.public()),
    }));
    let possession = Possession::state(&place.key, MEMBERSHIP, now);
    for (proof, words) in [
        (
            place.proof(json!({"iat": now - 3_700, "exp": now + 60})),
            "expired",
        ),
        (place.proof(json!({"iat": Value::Null})), "iat"),
        (place.proof(json!({"iat": now + 3_000})), "iat"),
        (place.proof(json!({"aud": "other"})), "audience"),
        (
            place.proof(json!({"iss": "https://other.example"})),
            "issuer",
        ),
        (Proof::new(forged, possession).to_header(), "signature"),
        ("nonsense".to_owned(), "not made of"),
    ] {
        let said = place.refusal_of_ann(&proof).await;
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[tokio::test]
async fn a_gateways_own_are_taken_where_the_file_lists_it() {
    let gateway = json!({
        "issuer": {"url": format!("{GATEWAY}/oauth2"), "audiences": ["any"]},
        "claimMappings": {"username": {"claim": "sub", "prefix": "gateway:"}},
    });
    let (without, with) = (place(&[]).await, place(&[gateway]).await);
    let set = "principalSet://projects/p/locations/global/workloadIdentityPools/ci/group/ops";
    let job = "principal://projects/p/locations/global/workloadIdentityPools/ci/subject/job";
    for own in [grant("serviceAccount:ci@p", &[]), grant(job, &[set])] {
        let refused = without.person(&own, None).await.unwrap_err();
        assert!(matches!(refused, NotProven::OfTheGateway(_)), "{refused}");
        assert_eq!(with.person(&own, None).await.unwrap(), Person::of(&own));
    }
    // People it names no more than before, in whatever company.
    for person in [
        grant("ann@example.org", &[]),
        grant("serviceAccount:ci@p", &["admins"]),
        grant("user-of-the-gateway", &[]),
    ] {
        let refused = with.person(&person, None).await.unwrap_err();
        assert!(matches!(refused, NotProven::Missing(_)), "{refused}");
    }
}

#[tokio::test]
async fn a_request_in_end_to_end_mode_needs_a_proof() {
    let place = place(&[]).await;
    let pair = Pair::new(&[], Some(Arc::clone(&place.own)));
    let mut ann = pair.grant();
    ann.user = "ann@example.org".into();
    let admit = async |guard: &Guard, request: http::request::Builder| {
        let parts = request.body(()).unwrap().into_parts().0;
        guard.admit(parts).await.map(|(caller, _)| caller)
    };
    let bare: http::request::Builder = pair.sealed(&ann, "/api");
    let denied = admit(&pair.guard, bare).await.unwrap_err();
    assert!(matches!(denied, Denied::Proof(_)), "{denied}");
    assert_eq!(denied.refusal(), Refusal::Proof);
    let proof = place.proof(json!({}));
    let proven = pair.sealed(&ann, "/api").header(wire::PROOF, &proof);
    let caller = admit(&pair.guard, proven).await.unwrap();
    assert_eq!(caller.user(), "ann@example.org");
    // It goes no further than here.
    assert!(!caller.headers().contains_key(wire::PROOF));
    let twice = pair
        .sealed(&ann, "/api")
        .header(wire::PROOF, &proof)
        .header(wire::PROOF, &proof);
    assert!(matches!(
        admit(&pair.guard, twice).await,
        Err(Denied::Assertion(_))
    ));
    // The grant is looked at all the same.
    let unsigned = Request::get("https://m/api").header(wire::PROOF, &proof);
    assert!(matches!(
        admit(&pair.guard, unsigned).await,
        Err(Denied::Assertion(_))
    ));
}

#[tokio::test]
async fn a_file_that_is_none_is_said_to_be() {
    let place = place(&[]).await;
    fs::write(place.file.path(), configuration(&[])).unwrap();
    assert!(matches!(load(&place.file), Err(InvalidFile::Empty(_))));
    fs::write(place.file.path(), "{").unwrap();
    let wrong = load(&place.file).unwrap_err().to_string();
    assert!(wrong.starts_with("--end-to-end "), "{wrong}");
    fs::remove_file(place.file.path()).unwrap();
    assert!(matches!(load(&place.file), Err(InvalidFile::Read { .. })));
}
