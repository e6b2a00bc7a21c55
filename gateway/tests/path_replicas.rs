//! All tests of the path of a request once more, with two replicas on one PostgreSQL: callers come to one of them, and
//! agents' sessions are held by the other.

#[path = "path.rs"]
mod all;

use all::{BASE, get, status_object, text};

/// Whether callers come to one replica and agents to another.
pub(crate) const ELSEWHERE: bool = true;

mod across {
    //! What holds for all replicas together.

    use std::time::Duration;

    use http::StatusCode;
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use towline_gateway::quota::{Quota, Whose};

    use crate::{
        all::path::{
            double,
            iam::call,
            leases::{agent, exec},
            world::{World, bounded, membership},
        },
        get, status_object,
    };

    #[tokio::test]
    async fn a_place_is_taken_once() {
        let world = World::start().await;
        agent(&world).await;
        let (here, there) = (world.as_user("alice"), world.at_holder("alice"));
        for round in 0..3 {
            // Two may be.
            let first = here.upgrade(exec("/exec")).await;
            let second = there.upgrade(exec("/exec")).await;
            for client in [&here, &there] {
                let refused = client.http1(exec("/exec")).await;
                assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{round}");
                let status = status_object(refused).await;
                let message = status["message"].as_str().unwrap();
                assert!(
                    message.contains("\"active_streams\" exhausted (2 of 2 in use by user:alice)"),
                    "{message}"
                );
            }
            // One that ends at one replica leaves room at the other at once.
            drop(first);
            let third = there.upgrade(exec("/exec")).await;
            drop((second, third));
            world.nothing_held("alice", "two replicas").await;
            bounded(async {
                while world.held_elsewhere("alice").await > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        // Many at once, at both.
        let tries = (0..6).flat_map(|_| [&here, &there]);
        let answers = tries.map(|client| client.http1(exec("/exec")));
        let answers = futures_util::future::join_all(answers).await;
        let opened = answers.iter().filter(|answer| answer.status() == 101);
        assert!((1..=2).contains(&opened.count()));
    }

    #[tokio::test]
    async fn a_right_that_is_taken_at_one_replica_ends_what_runs_at_the_other() {
        let world = World::start().await;
        agent(&world).await;
        for taken_here in [true, false] {
            world.set_policy("user:alice").await;
            let (here, there) = (world.as_user("alice"), world.at_holder("alice"));
            let client = if taken_here { &there } else { &here };
            let mut stream = bounded(async {
                loop {
                    let answer = client.http1(exec("/exec")).await;
                    // It may not have heard yet that the right is back.
                    if answer.status() == 101 {
                        break hyper_util::rt::TokioIo::new(
                            hyper::upgrade::on(answer).await.unwrap(),
                        );
                    }
                }
            })
            .await;
            stream.write_all(b"x").await.unwrap();
            if taken_here {
                world.set_policy("user:owner").await;
            } else {
                world.set_policy_at_holder("user:owner").await;
            }
            drop(bounded(stream.read_to_end(&mut Vec::new())).await);
            world.nothing_held("alice", "a right that is gone").await;
        }
    }

    #[tokio::test]
    async fn streams_of_all_replicas_are_told_at_each() {
        let world = World::start().await;
        agent(&world).await;
        let streams = [
            world.as_user("alice").upgrade(exec("/exec")).await,
            world.at_holder("alice").upgrade(exec("/exec")).await,
        ];
        let (status, told) = call(&world, "alice", "Streams/List", json!({"project": "p"})).await;
        assert_eq!(
            (status, told["streams"].as_array().unwrap().len()),
            (StatusCode::OK, 2),
            "{told}"
        );
        let (_, told) = call(&world, "alice", "Memberships/List", json!({"project": "p"})).await;
        assert_eq!(told["memberships"][0]["sessions"], 1, "{told}");
        assert_eq!(told["memberships"][0]["state"], "CONNECTED", "{told}");
        let (_, told) = call(
            &world,
            "alice",
            "Memberships/Get",
            json!({"project": "p", "name": "m"}),
        )
        .await;
        assert_eq!(told["sessions"], 1, "{told}");
        drop(streams);
        world.nothing_held("alice", "streams that were told").await;
    }

    #[tokio::test]
    async fn a_membership_that_is_deleted_at_one_replica_loses_its_sessions_at_the_other() {
        let world = World::start().await;
        agent(&world).await;
        let store = &world.running.gateway().store;
        store.delete_membership(&membership()).await.unwrap();
        world.connected(0).await;
    }

    #[tokio::test]
    async fn requests_are_limited_together() {
        const A_MINUTE: u32 = 1_200;
        let world = World::start().await;
        let (recording, mut seen) = double::recording();
        world.agent(recording).await;
        let store = &world.running.gateway().store;
        let alice = Whose::Principal("user:alice".parse().unwrap());
        let project = "p".parse().unwrap();
        store
            .set_quota(&project, &alice, Quota::RequestsPerMinute, Some(A_MINUTE))
            .await
            .unwrap();
        let (here, there) = (world.as_user("alice"), world.at_holder("alice"));
        let began = tokio::time::Instant::now();
        let limited = async |client: &crate::all::path::world::Client| {
            let mut served = 0_u32;
            while began.elapsed() < Duration::from_secs(10) {
                let answer = client.http2(get("/api")).await;
                served += u32::from(answer.status() == StatusCode::OK);
                drop(answer.into_body().collect().await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            served
        };
        let (a, b) = tokio::join!(limited(&here), limited(&there));
        let seconds = u32::try_from(began.elapsed().as_secs()).unwrap() + 1;
        // What comes at once, and then so many a second.
        let allowed = A_MINUTE / 10 + A_MINUTE / 60 * seconds;
        assert!(a + b <= allowed * 6 / 5, "{a} and {b} of {allowed}");
        assert!(a + b >= allowed / 2, "{a} and {b} of {allowed}");
        assert!(a.min(b) >= allowed / 5, "{a} and {b} of {allowed}");
        seen.close();
    }
}
