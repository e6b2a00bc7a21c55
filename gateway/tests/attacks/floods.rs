//! Attacks on the gateway's time and memory: each may cost the attacker's own connection, and nobody else's request.

use std::time::Duration;

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    ground::{BASE, Ground, get},
    raw::exchange,
    raw2::{
        CONTINUATION, Connection, END_HEADERS, END_STREAM, HEADERS, Outcome, RST_STREAM, block,
        frame, indexed, indexed_literal,
    },
};

/// HTTP/2's ENHANCE_YOUR_CALM.
const CALM: u32 = 0xb;

/// The most that one frame holds, by default.
const FRAME: usize = 16 * 1024;

/// Somebody else is served while the attack goes on, in bounded time, and nothing of the attack came to the agent.
async fn others_are_served(ground: &mut Ground) {
    // Every step of it is bounded.
    ground.assert_nothing_came().await;
}

/// The head of a GET.
fn head(path: &str) -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gateway.test"),
        (":path", path),
    ])
}

/// A header block in as many frames as it takes.
fn frames(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut chunks = block.chunks(FRAME).peekable();
    let mut frames = Vec::new();
    let mut kind = HEADERS;
    while let Some(chunk) = chunks.next() {
        let mut flags = if kind == HEADERS { END_STREAM } else { 0 };
        if chunks.peek().is_none() {
            flags |= END_HEADERS;
        }
        frames.extend(frame(kind, flags, stream, chunk));
        kind = CONTINUATION;
    }
    frames
}

/// CVE-2024-27316 and its kin: a head that never ends.
#[tokio::test]
async fn a_flood_of_continuations_ends_its_own_connection() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    for chunk in [
        Vec::new(),
        block(&[("x-a", "b")]),
        block(&[("x-long", &"x".repeat(FRAME - 20))]),
    ] {
        let mut connection = Connection::open(gateway).await;
        connection
            .write(&frame(HEADERS, END_STREAM, 1, &head(BASE)))
            .await;
        let more = frame(CONTINUATION, 0, 1, &chunk);
        // 4,000 frames at most; the gateway has enough long before.
        for _ in 0..40 {
            connection.write(&more.repeat(100)).await;
        }
        let outcome = connection.outcome(1).await;
        // Any other frame in between, such as the answer to its settings, would end the connection too.
        assert!(
            matches!(outcome, Outcome::GoneAway(CALM) | Outcome::Closed),
            "{} bytes each: {outcome:?}",
            chunk.len()
        );
        others_are_served(&mut ground).await;
    }
}

/// A few KiB that unpack to 64 MiB.
#[tokio::test]
async fn a_packed_head_is_not_unpacked() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let mut connection = Connection::open(gateway).await;
    let mut bomb = head(BASE);
    bomb.extend(indexed_literal("x-bomb", &"x".repeat(4000)));
    // The newest entry of the dynamic table.
    bomb.extend(indexed(62).repeat(16 * 1024));
    connection.write(&frames(1, &bomb)).await;
    let outcome = connection.outcome(1).await;
    assert!(
        matches!(
            outcome,
            Outcome::Answered(..) | Outcome::Reset(_) | Outcome::GoneAway(_)
        ),
        "{outcome:?}"
    );
    others_are_served(&mut ground).await;
    // With a token too: its size is what it unpacks to.
    let mut bomb = head(BASE);
    bomb.extend(block(&[("authorization", &ground.alice())]));
    bomb.extend(indexed_literal("x-bomb", &"x".repeat(4000)));
    bomb.extend(indexed(62).repeat(100));
    let mut connection = Connection::open(gateway).await;
    connection.write(&frames(1, &bomb)).await;
    let outcome = connection.outcome(1).await;
    assert!(matches!(outcome, Outcome::Answered(431, _)), "{outcome:?}");
    others_are_served(&mut ground).await;
}

#[tokio::test]
async fn a_thousand_headers_are_too_many() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    // HTTP/1.1, before anybody is known.
    let lines: String = (0..5_000).map(|n| format!("x-{n}: a\r\n")).collect();
    let bytes =
        format!("GET {BASE}/api HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\n{lines}\r\n");
    let answers = exchange(gateway, bytes.as_bytes()).await;
    assert_eq!(answers[0].status, 431, "{answers:?}");
    // HTTP/2: few bytes each, but a line costs more than its bytes here, in the tunnel and behind it.
    for count in [9_000, 20_000, 24_500, 30_000] {
        let mut many = head(&format!("{BASE}/api"));
        many.extend(block(&[("authorization", &alice)]));
        for n in 0..count {
            many.extend(block(&[(&format!("{n:x}"), "")]));
        }
        let mut connection = Connection::open(gateway).await;
        connection.write(&frames(1, &many)).await;
        let outcome = connection.outcome(1).await;
        // Over the limit of the HTTP library its own answer has no body.
        assert!(
            matches!(outcome, Outcome::Answered(431 | 0, _)),
            "{count}: {outcome:?}"
        );
        others_are_served(&mut ground).await;
    }
    assert_eq!(ground.world.sessions(), 1);
}

/// CVE-2023-44487.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_cost_nobody_else_anything() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let mut connection = Connection::open(gateway).await;
    let path = format!("{BASE}/api/reset");
    let mut stream = 1;
    let attack = async {
        for _ in 0..40 {
            let mut burst = Vec::new();
            for _ in 0..100 {
                burst.extend(frames(stream, &head(&path)));
                burst.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                stream += 2;
            }
            connection.write(&burst).await;
        }
    };
    let others = async {
        for _ in 0..5 {
            others_are_served(&mut ground).await;
        }
    };
    tokio::join!(attack, others);
    others_are_served(&mut ground).await;
    // The attacker's own connection is over, or alive and has nothing left of it.
    connection
        .request(
            stream,
            &[(":method", "GET"), (":scheme", "https"), (":path", &path)],
        )
        .await;
    let outcome = connection.outcome(stream).await;
    assert!(
        matches!(outcome, Outcome::Answered(401, _) | Outcome::GoneAway(CALM)),
        "{outcome:?}"
    );
}

/// CVE-2025-8671 ("MadeYouReset"): the gateway itself is made to reset streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_that_the_gateway_is_made_to_send_cost_nobody_else_anything() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let mut connection = Connection::open(gateway).await;
    let path = format!("{BASE}/api/reset");
    // A window update of nothing is a stream error (RFC 9113 §6.9).
    const WINDOW_UPDATE: u8 = 0x8;
    let mut stream = 1;
    let attack = async {
        for _ in 0..40 {
            let mut burst = Vec::new();
            for _ in 0..100 {
                burst.extend(frames(stream, &head(&path)));
                burst.extend(frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()));
                stream += 2;
            }
            connection.write(&burst).await;
        }
    };
    let others = async {
        for _ in 0..5 {
            others_are_served(&mut ground).await;
        }
    };
    tokio::join!(attack, others);
    others_are_served(&mut ground).await;
}

/// Frames that ask for an answer each, which nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_asked_for_and_not_read_cost_nobody_else_anything() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    const PING: u8 = 0x6;
    const SETTINGS: u8 = 0x4;
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut connection = Connection::open(gateway).await;
        let burst = flood.repeat(10_000);
        // The gateway stops reading once its own answers have no room; then so must the attacker.
        for _ in 0..50 {
            if timeout(Duration::from_millis(200), connection.write(&burst))
                .await
                .is_err()
            {
                break;
            }
        }
        others_are_served(&mut ground).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_idle_connections_keep_nobody_out() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    // Both ends are in this process.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(u64::MAX, |most| most.saturating_sub(1_000) / 2);
    let count = usize::try_from(most).unwrap().min(10_000);
    assert!(count >= 1_000, "too few file descriptors: ulimit -n");
    let mut idle = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        // Silent, half a head, or an HTTP/2 preface and no more.
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        };
        stream.write_all(said).await.unwrap();
        idle.push(stream);
    }
    others_are_served(&mut ground).await;
    drop(idle);
    others_are_served(&mut ground).await;
}

/// Slowloris: heads that come one byte at a time. Time is paused, so what is waited for passes at once.
#[tokio::test]
async fn a_head_that_trickles_is_given_up() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let mut streams = Vec::new();
    for said in [&b"GET / HTTP/1.1\r\nHost: x\r\n"[..], b"GET /", b""] {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        stream.write_all(said).await.unwrap();
        streams.push(stream);
    }
    // What was said has been read once somebody else was answered.
    others_are_served(&mut ground).await;
    tokio::time::pause();
    let began = Instant::now();
    for mut stream in streams {
        let mut trickle = Vec::new();
        let ended = async {
            loop {
                // A byte every second, until the gateway has had enough.
                tokio::time::sleep(Duration::from_secs(1)).await;
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
                let mut buffer = [0; 1024];
                match stream.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => trickle.extend_from_slice(&buffer[..read]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        timeout(Duration::from_secs(400), ended)
            .await
            .expect("a head should be given up");
        let told = String::from_utf8_lossy(&trickle);
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 408"),
            "{told}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(400));
}

#[tokio::test]
async fn a_form_that_trickles_and_an_endless_body_are_not_read() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    // Endless, and nobody's: the answer comes at once, and the connection is not read on for ever.
    for path in [
        "/oauth2/token",
        "/oauth2/authorize",
        "/towline.v1.Identity/WhoAmI",
        BASE,
    ] {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000000000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        let ended = async {
            while stream.write_all(&chunk).await.is_ok() {
                sent += chunk.len();
            }
        };
        timeout(Duration::from_secs(10), ended)
            .await
            .expect("an endless body should be cut");
        assert!(sent < 16 << 20, "{path}: {sent} bytes were taken");
        let mut rest = Vec::new();
        drop(timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await);
    }
    others_are_served(&mut ground).await;
    let (status, _) = ground.ask(get("/api"), "x").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
