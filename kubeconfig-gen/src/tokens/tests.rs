use std::sync::{
    Arc, Barrier,
    atomic::{AtomicUsize, Ordering},
};

use secrecy::ExposeSecret;

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("away")]
struct Away;

fn issued(token: &str, seconds: u64) -> Issued {
    Issued {
        access_token: token.into(),
        lifetime: Duration::from_secs(seconds),
    }
}

fn refresh(token: &str) -> SignIn {
    SignIn::Gateway {
        refresh_token: token.into(),
    }
}

fn presented(renewal: &Renewal<'_>) -> String {
    match renewal.sign_in() {
        SignIn::Gateway { refresh_token } => refresh_token.expose_secret().to_owned(),
        other => panic!("{other:?}"),
    }
}

fn tokens() -> (tempfile::TempDir, Tokens) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::at(dir.path().join("tokens/gw.json"));
    (dir, tokens)
}

async fn never(_: &mut Renewal<'_>) -> Refreshed<Away> {
    panic!("nobody was to be asked")
}

#[tokio::test]
async fn many_at_once_ask_once() {
    let (_dir, tokens) = tokens();
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("first", 600))))
        .await
        .unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let barrier = Arc::new(Barrier::new(16));
    // A lock of the operating system excludes by open file, so threads are as good as processes here.
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (tokens, asked, barrier) =
                (tokens.clone(), Arc::clone(&asked), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    barrier.wait();
                    tokens
                        .token("projects/p", async |renewal| {
                            assert_eq!(presented(renewal), "r1");
                            asked.fetch_add(1, Ordering::SeqCst);
                            Refreshed::<Away>::Issued(issued("second", 600))
                        })
                        .await
                        .unwrap()
                })
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap().token.expose_secret(), "second");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // The first token is still there beside it.
    assert_eq!(
        tokens
            .token("gw", never)
            .await
            .unwrap()
            .token
            .expose_secret(),
        "first"
    );
}

#[tokio::test]
async fn a_token_is_renewed_a_minute_early_and_serves_when_the_gateway_is_away() {
    let (_dir, tokens) = tokens();
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("a", 600))))
        .await
        .unwrap();
    let token = tokens.kept("gw").unwrap();
    assert_eq!(token.expires - token.renew_at, 60);

    let mut cache = tokens.read::<Away>().unwrap();
    cache.access_tokens.get_mut("gw").unwrap().renew_at = clock::unix_now();
    tokens.write(&cache).unwrap();
    assert!(tokens.kept("gw").is_none());
    let token = tokens
        .token("gw", async |_| Refreshed::Failed(Away))
        .await
        .unwrap();
    assert_eq!(token.token.expose_secret(), "a");
    let token = tokens
        .token("gw", async |_| Refreshed::<Away>::Issued(issued("b", 600)))
        .await
        .unwrap();
    assert_eq!(token.token.expose_secret(), "b");

    cache.access_tokens.get_mut("gw").unwrap().expires = clock::unix_now();
    tokens.write(&cache).unwrap();
    let error = tokens
        .token("gw", async |_| Refreshed::Failed(Away))
        .await
        .unwrap_err();
    assert!(matches!(error, TokensError::Refresh(Away)));
}

#[tokio::test]
async fn what_a_provider_gave_is_kept_before_the_gateway_is_asked() {
    let (_dir, tokens) = tokens();
    tokens.signed_in::<Away>(refresh("r1"), None).await.unwrap();
    let error = tokens
        .token("gw", async |renewal: &mut Renewal<'_>| {
            assert_eq!(presented(renewal), "r1");
            renewal.keep(refresh("r2")).unwrap();
            Refreshed::Failed(Away)
        })
        .await
        .unwrap_err();
    assert!(matches!(error, TokensError::Refresh(Away)));
    tokens
        .token("gw", async |renewal: &mut Renewal<'_>| {
            assert_eq!(presented(renewal), "r2");
            Refreshed::<Away>::Issued(issued("a", 600))
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_refused_refresh_token_is_not_tried_again() {
    let (_dir, tokens) = tokens();
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("a", 0))))
        .await
        .unwrap();
    let error = tokens
        .token("gw", async |_| Refreshed::<Away>::Ended)
        .await
        .unwrap_err();
    assert!(matches!(error, TokensError::SignedOut));
    assert!(matches!(
        tokens.token("gw", never).await.unwrap_err(),
        TokensError::SignedOut
    ));
}

#[tokio::test]
async fn a_rubbish_file_means_signed_out_and_signing_in_mends_it() {
    let (_dir, tokens) = tokens();
    atomic::write(&tokens.path, b"{\"refresh_token\":").unwrap();
    assert!(matches!(
        tokens.token("gw", never).await.unwrap_err(),
        TokensError::SignedOut
    ));
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("a", 600))))
        .await
        .unwrap();
    assert!(tokens.kept("gw").is_some());
    let forgotten = tokens.forget::<Away>().await.unwrap().unwrap();
    assert!(matches!(
        forgotten.sign_in,
        SignIn::Gateway { refresh_token } if refresh_token.expose_secret() == "r1"
    ));
    assert_eq!(forgotten.access_tokens.len(), 1);
    assert!(tokens.forget::<Away>().await.unwrap().is_none());
    assert!(!tokens.path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_let_go_is_not_waited_for_forever() {
    let (_dir, tokens) = tokens();
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("a", 0))))
        .await
        .unwrap();
    let _held = tokens.lock::<Away>().await.unwrap();
    assert!(matches!(
        tokens.token("gw", never).await.unwrap_err(),
        TokensError::Busy(60)
    ));
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_its_owners_only() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, tokens) = tokens();
    tokens
        .signed_in::<Away>(refresh("r1"), Some(("gw", issued("a", 600))))
        .await
        .unwrap();
    assert_eq!(fs::metadata(&tokens.path).unwrap().mode() & 0o777, 0o600);
}
