//! What other issuers are: their configuration, the expressions in it, and their tokens.

use std::{
    sync::LazyLock,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};
use towline_oidc::{
    AuthenticationConfiguration, CompileError, EvaluationError, Expression, Issuer,
    IssuerConfiguration, Rules, Type, Variables,
};
use towline_proto::jws::{KeyPair, Kind};

use crate::statements::changed;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.test";

/// As little as a worker of the runtime has: what recurses too deep ends the program.
const STACK: usize = 2 * 1024 * 1024;

pub(crate) fn in_a_worker<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .unwrap();
        worker
            .join()
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    })
}

/// No token verifies but the one that the issuer signed.
pub(crate) fn token(data: &[u8]) {
    static KNOWN: LazyLock<(Issuer, String)> = LazyLock::new(|| {
        let key = KeyPair::generate().unwrap();
        let claims = json!({"iss": ISSUER, "aud": ["towline", "b"], "sub": "alice", "exp": NOW + 60, "groups": ["a"]});
        let signed = key.sign(Kind::AccessToken, &claims);
        let jwk = json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": key.public().id(), "x": key.public().to_string(),
        });
        let issuer = Issuer::new(IssuerConfiguration {
            url: ISSUER.to_owned(),
            audiences: vec!["towline".to_owned()],
            jwks: Some(json!({"keys": [jwk]}).to_string()),
            ..IssuerConfiguration::default()
        });
        (issuer.unwrap(), signed)
    });
    let (issuer, signed) = &*KNOWN;
    let Some(text) = changed(signed, data) else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let mut verified = Box::pin(issuer.verify(&text, now));
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(verified) = verified.as_mut().poll(&mut context) else {
        panic!("keys that are given are not fetched");
    };
    assert_eq!(verified.is_ok(), text == *signed, "{text}");
}

/// What the gateway takes kube-apiserver takes too, and every issuer is somebody.
pub(crate) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(read) = in_a_worker(|| AuthenticationConfiguration::parse(text, &Rules::towline()))
    else {
        return;
    };
    assert_eq!(
        AuthenticationConfiguration::parse(text, &Rules::kubernetes()).as_ref(),
        Ok(&read)
    );
    for (at, issuer) in read.jwt.iter().enumerate() {
        let fields = &issuer.issuer;
        assert!(
            fields.url.to_lowercase().starts_with("https:") && !fields.audiences.is_empty(),
            "{fields:?}"
        );
        assert!(
            read.jwt[..at]
                .iter()
                .all(|other| other.issuer.url != fields.url),
            "{fields:?}"
        );
    }
}

/// An expression is taken or refused, gives the same each time, and ends.
pub(crate) fn expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (source, claims) = text.split_once('\n').unwrap_or((text, "{}"));
    let claims: Map<String, Value> = serde_json::from_str(claims).unwrap_or_default();
    in_a_worker(|| {
        let compiled = match Expression::compile(source, &[("claims", Type::map(Type::Dyn))], None)
        {
            Ok(compiled) => compiled,
            // The parser's panics are caught, and are nothing to get used to.
            Err(error) => {
                assert_ne!(
                    error,
                    CompileError::Syntax("internal error".to_owned()),
                    "{source:?}"
                );
                return;
            }
        };
        assert_eq!(compiled.source(), source);
        let variables = Variables::new().with_object("claims", &claims);
        let (first, second) = (compiled.strings(&variables), compiled.strings(&variables));
        assert_eq!(first, second);
        assert_ne!(
            first,
            Err(EvaluationError::Failed("internal error".to_owned())),
            "{source:?}"
        );
        if let (Ok(strings), Some(prefix)) = (first, compiled.literal_prefix()) {
            assert!(
                strings.iter().all(|text| text.starts_with(prefix)),
                "{source:?}: {strings:?}"
            );
        }
    });
}
