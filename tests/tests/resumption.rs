//! What runs in a session goes on while its connections die: a shell, copies both ways, a port-forward and a watch,
//! byte for byte, on a link that is slow enough for each copy to outlive many connections.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use tests::{
    Agent, Cluster, Program, Stopwatch, World,
    file::{checksum, random_file},
    place,
    pty::Terminal,
    wait_until,
    world::{POD, run_server},
};

/// What each copy carries, in bytes.
const LARGE: u64 = 1 << 30;

/// 20 MiB/s, in megabits per second: a copy takes 51 s at least.
const RATE: u32 = 168;

const PATIENCE: Duration = Duration::from_secs(60);

/// How long a copy may take, with all that happens to it.
const COPY: Duration = Duration::from_secs(400);

/// One link, one fault at a time.
static LINK: Mutex<()> = Mutex::new(());

struct Site {
    cluster: Cluster,
    world: World,
    namespace: String,
    agent: Agent,
}

impl Site {
    fn new(name: &str) -> Self {
        let cluster = Cluster::with_node();
        let world = World::new(name, &cluster);
        let agent = world.join(&cluster, name);
        let namespace = world.namespace(&cluster);
        run_server(&cluster, &namespace);
        Self {
            cluster,
            world,
            namespace,
            agent,
        }
    }

    /// What a script in the pod says.
    fn shell(&self, script: &str) -> String {
        let admin = &self.world.admin;
        let words = format!("exec -i {POD} -- sh -c");
        admin.kubectl(&words).arg(script).limit(COPY).ok()
    }

    fn resumptions(&mut self) -> f64 {
        self.world.gateway.metric("towline_sessions_resumed_total")
    }
}

/// The link is as it was, whatever a test comes to.
struct Restored<'a>(&'a Cluster);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        self.0.link("restore");
    }
}

#[test]
fn streams_outlive_connections_that_are_reset() {
    let _alone = LINK
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut site = Site::new("reset");
    let port = site.world.gateway.port;
    streams_outlive(&mut site, 20, |site| {
        let said = site.cluster.link(&format!("kill {port}"));
        assert!(!said.contains("ended 0 "), "nothing was killed: {said}");
        Duration::from_secs(2)
    });
}

#[test]
fn streams_outlive_connections_that_fall_silent() {
    let _alone = LINK
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut site = Site::new("silent");
    let port = site.world.gateway.port;
    streams_outlive(&mut site, 5, |site| {
        let before = site.resumptions();
        site.cluster.link(&format!("stall {port}"));
        let since = Stopwatch::new();
        wait_until("the session goes on", PATIENCE, || {
            site.resumptions() > before
        });
        // Ten for the silence to be noticed, and some for the new connection.
        let took = since.elapsed();
        assert!(took < Duration::from_secs(13), "{took:?}");
        Duration::from_secs(9)
    });
}

/// Runs every kind of stream while `fault` is done to their connection again and again, each copy through at least
/// `least` of them; `fault` says how long to leave the next connection alone.
fn streams_outlive(site: &mut Site, least: u32, mut fault: impl FnMut(&mut Site) -> Duration) {
    let directory = place::directory(&format!("resumption-{least}"));
    let (up, down) = (directory.join("up"), directory.join("down"));
    random_file(&up, LARGE);
    // What comes down was random, too.
    let remote = site.shell(&format!(
        "head -c {LARGE} /dev/urandom >/tmp/down; sha256sum </tmp/down"
    ));

    site.cluster.link(&format!("rate {RATE}"));
    let admin = &site.world.admin;
    let mut terminal = Terminal::start(admin.kubectl(&format!("exec -it {POD} -- sh")), 24, 80);
    terminal.keys("pid=$$\r");
    let mut watch = watch(site);
    let forward = Forward::start(site);
    let copies = [
        admin.kubectl("cp").arg(&up).arg(format!("{POD}:/tmp/up")),
        admin
            .kubectl("cp")
            .arg(format!("{POD}:/tmp/down"))
            .arg(&down),
    ]
    .map(|copy| copy.limit(COPY));
    let before = site.resumptions();
    let mut faults = 0;
    let done = AtomicBool::new(false);
    let through = thread::scope(|scope| {
        let forwarding = scope.spawn(|| forward.until(&done));
        let mut copying: Vec<(usize, ScopedJoinHandle<'_, String>)> = copies
            .iter()
            .map(|copy| scope.spawn(|| copy.ok()))
            .enumerate()
            .collect();
        let mut outlived = [0.0; 2];
        while !copying.is_empty() {
            let pause = fault(site);
            faults += 1;
            site.cluster
                .kubectl(&format!(
                    "-n {} create configmap seen-{faults}",
                    site.namespace
                ))
                .ok();
            terminal.keys(&format!(
                "echo answer-$((1000 + {faults}))-$((pid == $$))\r"
            ));
            let since = Stopwatch::new();
            while since.elapsed() < pause && !copying.iter().all(|(_, c)| c.is_finished()) {
                thread::sleep(Duration::from_millis(100));
            }
            let resumed = site.resumptions() - before;
            copying.retain(|(number, copy)| {
                if copy.is_finished() {
                    outlived[*number] = resumed;
                }
                !copy.is_finished()
            });
        }
        done.store(true, Ordering::Relaxed);
        (outlived, forwarding.join().unwrap())
    });
    let _restored = Restored(&site.cluster);
    let (outlived, forwarded) = through;
    for (copy, outlived) in ["up", "down"].iter().zip(outlived) {
        assert!(
            outlived >= f64::from(least),
            "{copy} outlived {outlived} connections"
        );
    }

    // The same shell, with every answer in order.
    let last = format!("answer-{}-1", 1000 + faults);
    terminal.shows(&last);
    let screen = terminal.screen();
    let answers: Vec<&str> = screen
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("answer-"))
        .collect();
    let expected: Vec<String> = (1..=faults)
        .map(|n| format!("answer-{}-1", 1000 + n))
        .collect();
    assert_eq!(answers, expected, "{screen}");
    terminal.keys("exit 7\r");
    assert_eq!(terminal.wait(), Some(7));

    // Every event of the watch, once.
    let last = format!("configmap/seen-{faults}");
    watch.line("the last event", PATIENCE, |line| line == last);
    let seen: Vec<String> = watch
        .out()
        .lines()
        .filter(|line| line.contains("seen-"))
        .map(str::to_owned)
        .collect();
    let expected: Vec<String> = (1..=faults)
        .map(|n| format!("configmap/seen-{n}"))
        .collect();
    assert_eq!(seen, expected);
    assert!(watch.runs(), "{}", watch.err());
    assert!(forwarded > 0, "nothing went through the port-forward");

    assert_eq!(
        site.shell("sha256sum </tmp/up").split_whitespace().next(),
        Some(checksum(&up).as_str()),
        "the copy to the pod"
    );
    assert_eq!(
        remote.split_whitespace().next(),
        Some(checksum(&down).as_str()),
        "the copy from the pod"
    );
    #[expect(clippy::print_stdout, reason = "the figures are what this is for")]
    {
        println!(
            "{faults} connections died: the copies outlived {outlived:?}, {forwarded} bytes went through the \
             port-forward and back, {} bytes were sent again",
            site.world
                .gateway
                .metric("towline_sessions_replayed_bytes_total")
        );
    }
    site.agent.stop();
    fs::remove_dir_all(&directory).unwrap();
}

/// A watch for config maps, which has begun.
fn watch(site: &Site) -> Program {
    let words = "get configmaps --watch -o name --request-timeout 0";
    let mut watch = site.world.admin.kubectl(words).start("resumption-watch");
    watch.line("its first object", PATIENCE, |line| {
        line == "configmap/kube-root-ca.crt"
    });
    watch
}

/// A port-forward to an echo, and one connection through it.
struct Forward {
    _program: Program,
    connection: TcpStream,
}

impl Forward {
    fn start(site: &Site) -> Self {
        let command = site.world.admin.kubectl("port-forward pod/server :7000");
        let mut program = command.start("resumption-forward");
        let port = program.forwarded_port(PATIENCE);
        let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            _program: program,
            connection,
        }
    }

    /// Sends and gets back what it sent, until it is enough; how many bytes that were.
    fn until(mut self, done: &AtomicBool) -> usize {
        let mut count = 0;
        while !done.load(Ordering::Relaxed) {
            let sent: Vec<u8> = (0..10_000_usize)
                .map(|n| u8::try_from(((count + n) * 31 + n / 256) % 256).unwrap())
                .collect();
            self.connection.write_all(&sent).unwrap();
            let mut got = vec![0; sent.len()];
            self.connection.read_exact(&mut got).unwrap();
            assert!(got == sent, "after {count} bytes");
            count += sent.len();
        }
        count
    }
}
