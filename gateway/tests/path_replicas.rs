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

    use bytes::Bytes;
    use http::StatusCode;
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use sqlx::Connection as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use towline_gateway::quota::{Quota, Whose};
    use towline_test_postgresql::Server;

    use crate::{
        all::path::{
            double,
            iam::call,
            leases::{agent, exec},
            world::{World, at, bounded, membership},
        },
        get, status_object, text,
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
    async fn a_stream_that_cannot_be_counted_is_none() {
        let url = Server::shared().database();
        let world = World::start_on(Some(at(&url)), "").await;
        agent(&world).await;
        let alice = world.as_user("alice");
        drop(alice.upgrade(exec("/exec")).await);
        world.nothing_held("alice", "a first stream").await;
        // Somebody else counts, and takes their time.
        let mut counting = sqlx::PgConnection::connect(&url).await.unwrap();
        let mut counting = counting.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM projects FOR UPDATE")
            .execute(&mut *counting)
            .await
            .unwrap();
        let refused = alice.http1(exec("/exec")).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let status = status_object(refused).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("can't count this stream"), "{message}");
        counting.rollback().await.unwrap();
        world.nothing_held("alice", "what was not counted").await;
        drop(bounded(alice.upgrade(exec("/exec"))).await);
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
    async fn what_nobody_has_taken_goes_another_way_whole_and_once() {
        let world = World::start_with("session_grace = '60s'").await;
        let (tell, mut bodies) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..2 {
            let tell = tell.clone();
            let serve = move |request: hyper::Request<hyper::body::Incoming>, _| {
                let tell = tell.clone();
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    tell.send(body).unwrap();
                    text("taken")
                }
            };
            world.agent(serve).await;
        }
        world.known(2).await;
        let alice = world.as_user("alice");
        assert_eq!(alice.http1(get("/api")).await.status(), StatusCode::OK);
        bounded(bodies.recv()).await.unwrap();
        // Callers' replica hears of it a second later.
        world.cut_first();
        for size in [1, 1_000, 200_000] {
            let whole = Bytes::from(vec![b'x'; size]);
            let (answer, mut body) = alice.upload("/api/v1/pods").await;
            double::own({
                let whole = whole.clone();
                async move {
                    body.reserve_capacity(whole.len());
                    body.send_data(whole, true).unwrap();
                    // Until all of it is on its way.
                    drop(std::future::poll_fn(|cx| body.poll_reset(cx)).await);
                }
            });
            assert_eq!(
                bounded(answer).await.unwrap().status(),
                StatusCode::OK,
                "{size}"
            );
            assert_eq!(bounded(bodies.recv()).await.unwrap(), whole);
            assert!(bodies.try_recv().is_err(), "it came twice");
        }
    }

    #[tokio::test]
    async fn an_answer_too_long_for_another_replica_ends_nobody_elses_stream() {
        let world = World::start().await;
        world
            .agent(
                |request: hyper::Request<hyper::body::Incoming>, _| async move {
                    let mut answer = text("short");
                    if request.uri().path() == "/long" {
                        // Each octet takes 28 bits in HTTP/2's compression.
                        let value = vec![0xf9; 4_000];
                        for n in 0..60 {
                            let name: http::HeaderName = format!("x-{n}").parse().unwrap();
                            let value = http::HeaderValue::from_bytes(&value).unwrap();
                            answer.headers_mut().insert(name, value);
                        }
                    }
                    if request.uri().query().is_some() {
                        let (sender, channel) = towline_proto::body::channel();
                        std::mem::forget(sender);
                        return http::Response::new(channel.map_err(Into::into).boxed_unsync());
                    }
                    answer
                },
            )
            .await;
        let alice = world.as_user("alice");
        let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
        let refused = alice.http1(get("/long")).await;
        assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
        let message = status_object(refused).await;
        let message = message["message"].as_str().unwrap();
        assert!(message.contains("the answer's head is"), "{message}");
        assert_eq!(alice.http1(get("/api")).await.status(), StatusCode::OK);
        let waiting = tokio::time::timeout(Duration::from_millis(50), watch.frame());
        assert!(waiting.await.is_err(), "the watch has ended");
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
