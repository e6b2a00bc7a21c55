use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
    time::timeout,
};

use super::*;

/// Small, so that both bounds are met all the time.
const LIMITS: Limits = Limits {
    window: 256 * 1024,
    unsent: 32 * 1024,
};

fn pair(limits: Limits) -> (Session, Session) {
    let (a, b) = duplex(10_000);
    let session = |end| {
        let session = Session::with_limits("s".to_owned(), end, limits);
        session.0.lock().hear();
        session
    };
    (session(a), session(b))
}

/// What an agent and a gateway do between them, without the network.
fn resume(a: &Handle, b: &Handle) {
    resume_over(a, b, duplex(10_000));
}

fn resume_over(a: &Handle, b: &Handle, (near, far): (DuplexStream, DuplexStream)) {
    let generation = a.generation() + 1;
    let from_a = a.fence(generation).unwrap();
    let from_b = b.fence(generation).unwrap();
    b.attach(generation, far, from_a).unwrap();
    a.attach(generation, near, from_b).unwrap();
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count)
        .map(|n| u8::try_from((n * 31 + n / 256 + seed) % 256).unwrap())
        .collect()
}

async fn becomes(handle: &Handle, phase: Phase) {
    handle.phase().wait_for(|now| *now == phase).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn both_ways_are_byte_exact_while_connections_come_and_go() {
    let (a, b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    let sent = [bytes(8_000_000, 1), bytes(6_000_000, 2)];
    let one_way = |session: Session, data: Vec<u8>, expected: usize| async move {
        let (mut read, mut write) = split(session);
        let sending = async {
            write.write_all(&data).await.unwrap();
            write.flush().await.unwrap();
        };
        let receiving = async {
            let mut got = vec![0; expected];
            read.read_exact(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::join!(receiving, sending);
        (got, read, write)
    };
    let copies = async {
        tokio::join!(
            one_way(a, sent[0].clone(), sent[1].len()),
            one_way(b, sent[1].clone(), sent[0].len())
        )
    };
    let mut resumptions = 0;
    let chaos = async {
        loop {
            // A few rounds of progress, in which time stands still, then another connection.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            resume(&handle_a, &handle_b);
            resumptions += 1;
        }
    };
    let ((at_a, ..), (at_b, ..)) = tokio::select! {
        biased;
        done = copies => done,
        () = chaos => unreachable!("it goes on"),
    };
    assert!(at_a == sent[1]);
    assert!(at_b == sent[0]);
    assert!(resumptions > 50, "{resumptions}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_falls_silent_is_given_up_within_ten_seconds() {
    let (mut a, _never_polled) = pair(LIMITS);
    let handle = a.handle();
    let began = Instant::now();
    let mut buffer = [0; 10];
    tokio::select! {
        _ = a.read(&mut buffer) => unreachable!("nothing comes"),
        () = becomes(&handle, Phase::Down) => {}
    }
    let took = began.elapsed();
    assert!(
        took <= Duration::from_secs(10) && took > Duration::from_secs(9),
        "{took:?}"
    );
    assert_eq!(handle.lost().as_deref(), Some("nothing came for too long"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_stays_on_its_connection() {
    let (a, b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    let idle = |mut session: Session| async move { session.read(&mut [0; 10]).await };
    let lost = async {
        tokio::select! {
            () = becomes(&handle_a, Phase::Down) => {}
            () = becomes(&handle_b, Phase::Down) => {}
        }
    };
    tokio::select! {
        _ = idle(a) => unreachable!("nothing is sent"),
        _ = idle(b) => unreachable!("nothing is sent"),
        still = timeout(Duration::from_secs(3_600), lost) => assert!(still.is_err()),
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_reads_wait_and_writes_up_to_their_bound() {
    let (mut a, mut b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    handle_a.fence(1).unwrap();
    assert!(b.read(&mut [0; 10]).now_or_never().is_none());
    assert!(
        !handle_b.is_up(),
        "it is noticed at once where the kernel tells"
    );

    let mut written = 0;
    while let Some(count) = a.write(&[7; 10_000]).now_or_never() {
        written += count.unwrap();
    }
    assert_eq!(written, LIMITS.unsent);
    a.flush().await.unwrap();
    tokio::time::advance(Duration::from_secs(55)).await;

    handle_b.fence(1).unwrap();
    let (near, far) = duplex(10_000);
    handle_a.attach(1, near, 0).unwrap();
    handle_b.attach(1, far, 0).unwrap();
    let mut got = vec![0; written];
    let reading = b.read_exact(&mut got);
    let driving = async {
        while a.flush().await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::select! {
        read = reading => { read.unwrap(); }
        () = driving => unreachable!("it goes on"),
    }
    assert_eq!(got, vec![7; written]);
}

#[tokio::test(start_paused = true)]
async fn an_end_arrives_after_everything_before_it() {
    let (mut a, mut b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    let sent = bytes(100_000, 3);
    let sending = async {
        a.write_all(&sent).await.unwrap();
        a.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        // The acknowledgement is on its way by now, and the other end waits for nothing else.
        b.shutdown().await.unwrap();
        got
    };
    let cut = async {
        for _ in 0..5 {
            tokio::task::yield_now().await;
            resume(&handle_a, &handle_b);
        }
    };
    let ((), got, ()) = tokio::join!(sending, receiving, cut);
    assert!(got == sent);
    drop((a, b));
    assert_eq!(*handle_a.phase().borrow(), Phase::Over);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_takes_is_waited_for_only_so_long() {
    let (mut a, b) = pair(LIMITS);
    drop(b);
    a.write_all(b"last words").await.unwrap();
    timeout(LAST_WORD * 2, a.shutdown()).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_and_writes_is_told_why_it_is_over() {
    let (mut a, _b) = pair(LIMITS);
    let handle = a.handle();
    let mut buffer = [0; 10];
    let reading = a.read(&mut buffer);
    let ending = async { handle.end("not resumed within 60 s") };
    let (read, ()) = tokio::join!(reading, ending);
    assert_eq!(read.unwrap_err().to_string(), "not resumed within 60 s");
    let written = a.write(b"x").await.unwrap_err();
    assert_eq!(written.to_string(), "not resumed within 60 s");
    assert!(matches!(handle.fence(9), Err(ResumeError::Over)));
}

#[tokio::test(start_paused = true)]
async fn the_newer_of_two_connections_is_kept() {
    let (a, _b) = pair(LIMITS);
    let handle = a.handle();
    handle.fence(2).unwrap();
    assert!(matches!(handle.fence(2), Err(ResumeError::Fenced)));
    assert!(matches!(handle.fence(1), Err(ResumeError::Fenced)));
    handle.fence(3).unwrap();
    let (near, far) = duplex(10);
    drop(far);
    assert!(matches!(
        handle.attach(2, near, 0),
        Err(ResumeError::Fenced)
    ));
    let (near, _far) = duplex(10);
    assert!(matches!(
        handle.attach(3, near, 1),
        Err(ResumeError::Violation(_))
    ));
    assert_eq!(*handle.phase().borrow(), Phase::Over);
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_a_connection_ends_the_session() {
    let (near, mut far) = duplex(1_000);
    let mut a = Session::with_limits("s".to_owned(), near, LIMITS);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n")
        .await
        .unwrap();
    let error = a.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.to_string(), "a frame of unknown type 72");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_never_heard_of_ends_with_its_connection() {
    let (near, far) = duplex(1_000);
    let mut a = Session::with_limits("s".to_owned(), near, LIMITS);
    let handle = a.handle();
    assert_eq!(*handle.phase().borrow(), Phase::New);
    drop(far);
    let error = a.read(&mut [0; 10]).await.unwrap_err();
    assert!(
        error.to_string().contains("before anything came"),
        "{error}"
    );
    assert!(matches!(handle.fence(1), Err(ResumeError::Over)));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_gets_no_other_connection_ends_with_the_one_it_has() {
    let (mut a, mut b) = pair(LIMITS);
    let handle = a.handle();
    handle.retire("its membership is gone");
    a.write_all(b"still").await.unwrap();
    a.flush().await.unwrap();
    b.read_exact(&mut [0; 5]).await.unwrap();
    assert!(matches!(handle.fence(1), Err(ResumeError::Over)));
    drop(b);
    let mut rest = Vec::new();
    // The other end said that it ends; one that doesn't say so ends it as well.
    a.read_to_end(&mut rest).await.unwrap();

    let (mut a, b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    handle_a.retire("its membership is gone");
    handle_b.fence(1).unwrap();
    let error = a.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.to_string(), "its membership is gone");

    let (a, _b) = pair(LIMITS);
    a.handle().fence(1).unwrap();
    a.handle().retire("its membership is gone");
    assert_eq!(*a.handle().phase().borrow(), Phase::Over);
}

#[tokio::test(start_paused = true)]
async fn a_notice_arrives_whatever_becomes_of_the_connection() {
    let (mut a, mut b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    let mut told = handle_b.told();
    assert_eq!(*told.borrow(), Notice::default());
    let reading = async {
        let (mut some, mut other) = ([0; 10], [0; 10]);
        let _read = tokio::join!(a.read(&mut some), b.read(&mut other));
    };
    let telling = async {
        for (leaving, replicas) in [(false, 3), (true, 3), (true, u32::MAX), (false, 0)] {
            let notice = Notice { leaving, replicas };
            handle_a.tell(notice);
            told.wait_for(|now| *now == notice).await.unwrap();
            assert_eq!(*handle_a.told().borrow(), Notice::default());
        }
        handle_a.fence(1).unwrap();
        handle_b.fence(1).unwrap();
        let leaving = Notice {
            leaving: true,
            replicas: 2,
        };
        handle_a.tell(leaving);
        let (near, far) = duplex(10_000);
        handle_b.attach(1, far, 0).unwrap();
        handle_a.attach(1, near, 0).unwrap();
        told.wait_for(|now| *now == leaving).await.unwrap();
        told.mark_unchanged();
        // What is only said again is no news.
        resume(&handle_a, &handle_b);
        handle_b.tell(leaving);
        let mut back = handle_a.told();
        back.wait_for(|now| *now == leaving).await.unwrap();
        assert!(!told.has_changed().unwrap());
    };
    tokio::select! {
        () = reading => unreachable!("there is nothing to read"),
        () = telling => {}
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_only_writes_notices_a_dead_connection() {
    let (mut a, _never_polled) = pair(LIMITS);
    let handle = a.handle();
    let writing = async { while a.write_all(&[0; 10_000]).await.is_ok() {} };
    tokio::select! {
        () = writing => unreachable!("it waits"),
        () = becomes(&handle, Phase::Down) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_session_lets_go_of_its_connection_and_says_so() {
    let (mut a, mut b) = pair(LIMITS);
    let (handle_a, handle_b) = (a.handle(), b.handle());
    assert!(a.read(&mut [0; 10]).now_or_never().is_none());
    a.write_all(b"bye").await.unwrap();
    drop(a);
    assert_eq!(*handle_a.phase().borrow(), Phase::Over);
    let mut got = Vec::new();
    b.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    // Nobody is there to acknowledge, and nobody is waited for.
    timeout(Duration::from_millis(1), b.shutdown())
        .await
        .unwrap()
        .unwrap();
    assert!(!handle_b.is_up());
}
