use super::*;

fn project(name: &str) -> Project {
    name.parse().unwrap()
}

fn user(name: &str) -> Principal {
    Principal::User(name.to_owned())
}

/// Takes for `alice` in `p`.
fn take(usage: &Usage, ask: Ask, all: &Limits, own: &Limits) -> Result<Taken, Exhausted> {
    usage.take(ask, (&project("p"), all), (&user("alice"), own))
}

const PLENTY: Limits = Limits::of(1_000_000, 1_000_000, 1_000_000);

#[tokio::test(start_paused = true)]
async fn places_are_counted_and_come_back() {
    for (ask, quota) in [(Ask::Stream, "active_streams"), (Ask::Watch, "watches")] {
        let usage = Usage::default();
        let two = Limits::of(1_000, 2, 2);
        let held = [0; 2].map(|_| take(&usage, ask, &PLENTY, &two).unwrap());
        let refused = take(&usage, ask, &PLENTY, &two).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("quota \"{quota}\" exhausted (2 of 2 in use by user:alice)")
        );
        let bob = usage.take(ask, (&project("p"), &PLENTY), (&user("bob"), &two));
        drop(bob.unwrap());
        // Another project's budget is another.
        drop(
            usage
                .take(ask, (&project("q"), &PLENTY), (&user("alice"), &two))
                .unwrap(),
        );
        drop(held);
        let in_use = usage.of_principal(&project("p"), &user("alice"));
        assert_eq!((in_use.streams, in_use.watches), (0, 0));
        take(&usage, ask, &PLENTY, &two).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_nothing_from_anybody() {
    let usage = Usage::default();
    let one_stream = Limits::of(1_000, 1, 1);
    let held = take(&usage, Ask::Stream, &PLENTY, &one_stream).unwrap();
    for _ in 0..100 {
        take(&usage, Ask::Stream, &PLENTY, &one_stream).unwrap_err();
    }
    let (all, own) = usage.of(&project("p"));
    assert_eq!(
        (all.requests, all.streams, own[0].1.requests),
        (1, 1, 1),
        "the own refuses"
    );
    // Bob's own budget has room, the project's has not.
    for (ask, all) in [
        (Ask::Stream, Limits::of(1_000, 1, 1)),
        (Ask::Request, Limits::of(10, 9, 9)),
    ] {
        let ten = Limits::of(100, 10, 10);
        let bob = user("bob");
        let before = usage.of(&project("p")).0;
        let mut refused = 0;
        for _ in 0..100 {
            let taken = usage.take(ask, (&project("p"), &all), (&bob, &ten));
            refused += u32::from(taken.is_err());
        }
        assert!(refused >= 99, "{refused}");
        let bobs = usage.of_principal(&project("p"), &bob);
        assert_eq!(bobs.requests, 100 - refused, "{ask:?}");
        let after = usage.of(&project("p")).0;
        assert_eq!(after.streams, before.streams);
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_budget_is_tried_before_the_projects() {
    let usage = Usage::default();
    let none = Limits::of(10, 1, 1);
    let _held = take(&usage, Ask::Stream, &none, &none).unwrap();
    let refused = take(&usage, Ask::Stream, &none, &none).unwrap_err();
    assert!(refused.to_string().contains("user:alice"), "{refused}");
    let refused = usage
        .take(Ask::Stream, (&project("p"), &none), (&user("bob"), &none))
        .unwrap_err();
    assert!(refused.to_string().contains("project:p"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_upgrade_takes_no_request() {
    let usage = Usage::default();
    let ten = Limits::of(100, 50, 50);
    for _ in 0..10 {
        let taken = take(&usage, Ask::Stream, &PLENTY, &ten).unwrap();
        taken.refused_upgrade();
    }
    assert_eq!(usage.of(&project("p")).0.requests, 0);
    // But refused upgrades alone are bounded, too.
    let admitted = (0..100)
        .map_while(|_| take(&usage, Ask::Stream, &PLENTY, &ten).ok())
        .inspect(Taken::refused_upgrade)
        .count();
    assert!((9..=11).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_told_where_waiting_helps() {
    for (limit, expected) in [(6_000, Some(1)), (60, Some(1)), (40, Some(2)), (6, None)] {
        let usage = Usage::default();
        let own = Limits::of(limit, 1, 1);
        let refused = (0..1_000)
            .find_map(|_| take(&usage, Ask::Request, &PLENTY, &own).err())
            .unwrap();
        let Exhausted::Requests { retry_after, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!(retry_after, expected, "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn holders_do_not_grow_with_everybody_who_ever_came() {
    let usage = Usage::default();
    let own = Limits::of(6_000, 50, 50);
    let held = take(&usage, Ask::Stream, &PLENTY, &own).unwrap();
    for number in 0..100_000 {
        let principal = user(&format!("user-{number}"));
        drop(
            usage
                .take(Ask::Watch, (&project("p"), &PLENTY), (&principal, &own))
                .unwrap(),
        );
        // 1,000 newcomers a second.
        if number % 1_000 == 0 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(usage.holders() <= MANY * 2 + 2, "{}", usage.holders());
    }
    tokio::time::advance(REMEMBERED * 2).await;
    usage.forget_idle();
    assert_eq!(usage.holders(), 2, "who holds a stream is left");
    assert!(usage.lock().projects[&project("p")].principals.capacity() < 1_000);
    drop(held);
    assert_eq!(usage.of_principal(&project("p"), &user("alice")).streams, 0);
    tokio::time::advance(REMEMBERED * 2).await;
    usage.forget_idle();
    assert_eq!(usage.holders(), 0);
}
