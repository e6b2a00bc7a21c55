use std::os::unix::fs::PermissionsExt as _;

use towline_proto::jws::Kind;

use super::*;

const NOW: u64 = 1_800_000_000;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_chain_leads_from_the_root_to_the_signing_key() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::create(&dir.path().join("keys"), Clock::fixed(NOW).0).unwrap();
    let (signing, chain) = keys.signing_with_chain();
    assert_eq!(chain.verify(keys.root(), NOW).unwrap().0, signing.public());
    assert_eq!(mode(&dir.path().join("keys")), 0o700);
    for file in [ROOT, ROOT_PUBLIC, ISSUING, SIGNING, TOKENS] {
        assert_eq!(mode(&dir.path().join("keys").join(file)), 0o600, "{file}");
    }
}

#[test]
fn tokens_of_another_replica_are_believed_under_one_root_alone() {
    let [ours, others, strangers] = [0; 3].map(|_| tempfile::tempdir().unwrap());
    let clock = Clock::fixed(NOW).0;
    let open = |dir: &tempfile::TempDir| Keys::create(dir.path(), clock.clone()).unwrap();
    let (keys, stranger) = (open(&ours), open(&strangers));
    for file in [ROOT, ROOT_PUBLIC] {
        fs::copy(ours.path().join(file), others.path().join(file)).unwrap();
    }
    let other = open(&others);
    let published = |keys: &Keys| {
        let Published { id, chain, until } = keys.published();
        (id, (chain.to_header(), until))
    };
    let ((id, row), (strange, strange_row)) = (published(&other), published(&stranger));
    assert_eq!(keys.token_key(&id), None);
    // Whoever writes into the database makes nobody believed, nor for longer.
    keys.believe(&[(row.0, u64::MAX), strange_row]);
    assert_eq!(keys.token_key(&id), Some(other.signing().public()));
    assert_eq!(keys.token_key(&strange), None);
    assert_eq!(keys.token_keys().len(), 2);
    let late = Keys {
        clock: Clock::fixed(NOW + SIGNING_SECONDS + TOKEN_KEY_SECONDS).0,
        ..keys
    };
    assert_eq!(late.token_key(&id), None);
}

#[test]
fn a_restart_keeps_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let first = Keys::create(dir.path(), Clock::fixed(NOW).0).unwrap();
    let again = Keys::create(dir.path(), Clock::fixed(NOW + 60).0).unwrap();
    assert_eq!(again.root(), first.root());
    assert_eq!(again.chain(), first.chain());
}

#[test]
fn signing_keys_rotate_at_half_life_and_their_tokens_stay_good() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, time) = Clock::fixed(NOW);
    let keys = Keys::create(dir.path(), clock.clone()).unwrap();
    let old = keys.signing();
    let set = |seconds: u64| time.store(NOW + seconds, std::sync::atomic::Ordering::SeqCst);

    set(SIGNING_SECONDS / 2 - 1);
    assert!(keys.renew_due().unwrap().is_none());
    set(SIGNING_SECONDS / 2);
    let renewed = keys.renew_due().unwrap().unwrap();
    keys.adopt(renewed);
    assert_ne!(keys.signing().public(), old.public());
    assert_eq!(
        keys.chain().verify(keys.root(), clock.unix()).unwrap().0,
        keys.signing().public()
    );

    // What the old key signed is still believed, also by a gateway that was started anew.
    let token = old.sign(Kind::AccessToken, &serde_json::json!({}));
    let restarted = Keys::open(dir.path(), clock.clone()).unwrap();
    for keys in [&keys, &restarted] {
        let known = keys.token_key(&old.public().id()).unwrap();
        known
            .verify::<serde_json::Value>(Kind::AccessToken, &token)
            .unwrap();
    }
    set(SIGNING_SECONDS + TOKEN_KEY_SECONDS);
    assert!(keys.token_key(&old.public().id()).is_none());
}

#[test]
fn the_root_may_be_elsewhere_until_the_issuing_key_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, time) = Clock::fixed(NOW);
    let keys = Keys::create(dir.path(), clock.clone()).unwrap();
    let root = dir.path().join("root.elsewhere");
    fs::rename(dir.path().join(ROOT), &root).unwrap();

    time.store(
        NOW + ISSUING_SECONDS - 3600,
        std::sync::atomic::Ordering::SeqCst,
    );
    let running = Keys::open(dir.path(), clock.clone()).unwrap();
    assert_eq!(
        running.chain().verify(keys.root(), clock.unix()).unwrap().0,
        running.signing().public()
    );

    time.store(
        NOW + ISSUING_SECONDS + 3600,
        std::sync::atomic::Ordering::SeqCst,
    );
    let error = Keys::open(dir.path(), clock.clone()).unwrap_err();
    assert!(matches!(error, KeysError::OfflineRoot { .. }), "{error}");

    fs::rename(&root, dir.path().join(ROOT)).unwrap();
    let renewed = Keys::open(dir.path(), clock.clone()).unwrap();
    assert_eq!(renewed.root(), keys.root());
    renewed.chain().verify(keys.root(), clock.unix()).unwrap();
}

#[test]
fn a_root_that_agents_have_not_pinned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, time) = Clock::fixed(NOW);
    let keys = Keys::create(dir.path(), clock).unwrap();
    write(&dir.path().join(ROOT), &pem(&KeyPair::generate().unwrap())).unwrap();
    time.store(
        NOW + ISSUING_SECONDS / 2,
        std::sync::atomic::Ordering::SeqCst,
    );
    assert!(matches!(keys.renew_due(), Err(KeysError::OtherRoot(_))));
}

#[test]
fn a_run_that_died_between_two_files_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW).0;
    let keys = Keys::create(dir.path(), clock.clone()).unwrap();
    fs::remove_file(dir.path().join(ROOT_PUBLIC)).unwrap();
    assert!(matches!(
        Keys::open(dir.path(), clock.clone()),
        Err(KeysError::NoRoot(_))
    ));
    assert_eq!(
        Keys::create(dir.path(), clock.clone()).unwrap().root(),
        keys.root()
    );
    fs::remove_file(dir.path().join(SIGNING)).unwrap();
    let again = Keys::open(dir.path(), clock).unwrap();
    again.chain().verify(keys.root(), NOW).unwrap();
    // The key that was lost may have signed tokens.
    assert!(again.token_key(&keys.signing().public().id()).is_some());
}

#[test]
fn a_damaged_file_is_named_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW).0;
    Keys::create(dir.path(), clock.clone()).unwrap();
    fs::write(dir.path().join(ISSUING), "garbage").unwrap();
    let error = Keys::open(dir.path(), clock).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("issuing.key is not an Ed25519 private key"),
        "{error}"
    );
    assert_eq!(fs::read(dir.path().join(ISSUING)).unwrap(), b"garbage");
}
