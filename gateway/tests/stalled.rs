//! Two thousand large answers that nobody reads: what that costs the others, and the gateway's memory.
//!
//! A program of its own, as memory is the process's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::type_complexity,
    dead_code,
    reason = "a test says what went wrong by panicking; the world has more than is needed here"
)]

#[path = "path/double.rs"]
mod double;
#[path = "path/world.rs"]
mod world;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::time::Instant;
use world::{World, bounded};

/// Memory is one replica's.
pub(crate) const ELSEWHERE: bool = false;

const BASE: &str = "/v1/projects/p/locations/global/memberships/m";

/// 50 MiB of it.
const LIST: usize = 50 * 1024 * 1024;

/// What this process takes of memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_lists_of_one_leave_the_others_and_the_memory_alone() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            if request.uri().path() != "/list" {
                return Response::new(
                    Full::from("small")
                        .map_err(|never| match never {})
                        .boxed_unsync(),
                );
            }
            let chunk = Bytes::from_static(&[b'x'; 64 * 1024]);
            let chunks =
                std::iter::repeat_n(chunk, LIST / (64 * 1024)).map(|chunk| Ok(Frame::data(chunk)));
            Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync())
        })
        .await;
    let before = resident();
    let alice = world.as_user("alice").narrow().await;
    let stalling = async {
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let lists = (0..100).map(|_| alice("/list"));
            stalled.extend(futures_util::future::join_all(lists).await);
        }
        stalled
    };
    let reader = world.as_user("reader");
    let (mut slowest, mut most, mut asked) = (Duration::ZERO, 0, 0_u32);
    let reading = async {
        let mut after = 0;
        loop {
            let began = Instant::now();
            let request = Request::get(format!("{BASE}/small"))
                .body(Empty::new())
                .unwrap();
            let small = bounded(reader.http1(request)).await.into_body();
            assert_eq!(bounded(small.collect()).await.unwrap().to_bytes(), "small");
            slowest = slowest.max(began.elapsed());
            most = most.max(resident());
            asked += 1;
            // A few seconds longer, until only the budget is left.
            if world.stalled_bytes() <= 256 * 1024 * 1024 && world.answers_cut() > 0 {
                after += 1;
                if after > 20 {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (stalled, ()) = tokio::join!(stalling, reading);
    assert_eq!(stalled.len(), 2_000);
    println!(
        "asked {asked} times, the slowest took {slowest:?}; at most {} MiB more, {} answers cut",
        (most.saturating_sub(before)) >> 20,
        world.answers_cut()
    );
    assert!(world.answers_cut() >= 1_800, "{}", world.answers_cut());
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    // Gateway, agent and caller are one process here, and each of them holds what was sent for a moment before an answer
    // is cut; all of it together would be 100 GiB.
    assert!(most - before < 3 << 29, "{} MiB", (most - before) >> 20);
}
