//! exec and cp with every kubectl over both of its protocols.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs::{self, File},
    io::Read as _,
    time::Duration,
};

use tests::{
    Cmd,
    file::{checksum, random_file},
    place,
    pty::Terminal,
    shared,
    user::{Kubectl, Protocol},
    wait_for,
    world::POD,
};

/// A whole gibibyte with the current kubectl; the older ones show that they work at all.
const LARGE: u64 = 1 << 30;
const SMALL: u64 = 64 << 20;

macro_rules! matrix {
    ($($name:ident: $kubectl:ident, $protocol:ident, $size:expr;)*) => {
        $(mod $name {
            use super::*;
            const HOW: How = How { kubectl: Kubectl::$kubectl, protocol: Protocol::$protocol };
            #[test]
            fn exit_codes_and_both_outputs() {
                HOW.exit_codes_and_both_outputs();
            }
            #[test]
            fn input_ends_where_it_ends() {
                HOW.input_ends_where_it_ends();
            }
            #[test]
            fn a_terminal_is_a_terminal() {
                HOW.a_terminal_is_a_terminal();
            }
            #[test]
            fn the_protocol_is_the_one_asked_for() {
                HOW.the_protocol_is_the_one_asked_for();
            }
            #[test]
            fn cp_keeps_every_byte_both_ways() {
                HOW.cp_keeps_every_byte_both_ways(stringify!($name), $size);
            }
        })*
    };
}

matrix! {
    current_websocket: Current, WebSocket, LARGE;
    current_spdy: Current, Spdy, LARGE;
    v1_31_websocket: V1_31, WebSocket, SMALL;
    v1_31_spdy: V1_31, Spdy, SMALL;
    v1_29_websocket: V1_29, WebSocket, SMALL;
    v1_29_spdy: V1_29, Spdy, SMALL;
}

#[derive(Clone, Copy)]
struct How {
    kubectl: Kubectl,
    protocol: Protocol,
}

impl How {
    fn kubectl(self, words: &str) -> Cmd {
        shared()
            .world
            .admin
            .kubectl_of(self.kubectl, self.protocol, words)
    }

    fn sh(self, flags: &str, script: &str) -> Cmd {
        self.kubectl(&format!("exec {flags} {POD} --"))
            .args(["sh", "-c", script])
    }

    fn exit_codes_and_both_outputs(self) {
        let said = self.sh("", "echo to-out; echo to-err >&2; exit 42").run();
        assert_eq!(said.code, Some(42), "{said}");
        assert_eq!(said.text(), "to-out\n", "{said}");
        assert!(said.stderr.contains("to-err\n"), "{said}");
        assert!(said.stderr.contains("exit code 42"), "{said}");
        assert_eq!(self.sh("", "exit 0").run().code, Some(0));
        let said = self
            .kubectl(&format!("exec {POD} -- no-such-program"))
            .fails();
        assert!(said.contains("no-such-program"), "{said}");
    }

    fn input_ends_where_it_ends(self) {
        let bytes = random(8 << 20);
        let said = self.sh("-i", "wc -c; echo after").input(bytes.clone()).ok();
        assert_eq!(
            said.split_whitespace().collect::<Vec<_>>(),
            [bytes.len().to_string().as_str(), "after"]
        );
        let echoed = self.sh("-i", "cat").input(bytes.clone()).run();
        assert_eq!(echoed.code, Some(0));
        assert!(
            echoed.bytes == bytes,
            "what came back differs: {} bytes",
            echoed.bytes.len()
        );
        // And while it is open, bytes come through one by one.
        let mut open = self
            .sh(
                "-i",
                "while read line; do echo \"got $line\"; done; echo end",
            )
            .input_open()
            .start("exec-i");
        open.write("one\n");
        open.line("the echo", Duration::from_secs(20), |line| {
            line == "got one"
        });
        open.write("two\n");
        open.line("the echo", Duration::from_secs(20), |line| {
            line == "got two"
        });
        open.close_input();
        assert!(open.wait(Duration::from_secs(20)).success());
        assert_eq!(open.out(), "got one\ngot two\nend\n");
    }

    fn a_terminal_is_a_terminal(self) {
        let mut terminal = Terminal::start(self.kubectl(&format!("exec -it {POD} -- sh")), 33, 101);
        terminal.shows("# ");
        // Typed in two halves, so that the echo of the keys can't be taken for the answer.
        terminal.keys("tty >/dev/null && echo is-a-'tty'; stty size\n");
        terminal.shows("is-a-tty");
        terminal.shows("33 101");
        terminal.keys("trap 'echo re''sized $(stty size)' WINCH; echo tr''apped\n");
        terminal.shows("trapped");
        terminal.resize(44, 122);
        wait_for("the new size arrives", Duration::from_secs(20), || {
            terminal.keys("stty size\n");
            std::thread::sleep(Duration::from_millis(200));
            terminal.screen().contains("44 122").then_some(())
        });
        // Control-C goes to the program in the pod, not to kubectl.
        terminal.keys("echo be''gun; sleep 1000; echo st''atus $?\n");
        terminal.shows("begun");
        terminal.keys("\u{3}");
        terminal.keys("\necho al''ive\n");
        terminal.shows("alive");
        terminal.keys("exit 7\n");
        assert_eq!(terminal.wait(), Some(7), "{}", terminal.screen());
    }

    fn the_protocol_is_the_one_asked_for(self) {
        let said = self.kubectl(&format!("exec -v 8 {POD} -- true")).run();
        assert_eq!(said.code, Some(0), "{said}");
        let log = said.stderr.to_lowercase();
        let websocket =
            log.contains("upgrade: websocket") || log.contains("sec-websocket-protocol");
        assert_eq!(websocket, self.protocol == Protocol::WebSocket, "{said}");
        assert!(
            !log.contains("websocket upgrade failed") && !log.contains("fallback"),
            "{said}"
        );
    }

    fn cp_keeps_every_byte_both_ways(self, name: &str, size: u64) {
        let directory = place::directory(&format!("cp-{name}"));
        let (there, back) = (directory.join("there"), directory.join("back"));
        random_file(&there, size);
        let remote = format!("{POD}:/tmp/{name}");
        let limit = Duration::from_secs(300);
        self.kubectl("cp")
            .arg(&there)
            .arg(&remote)
            .limit(limit)
            .ok();
        let sum = self
            .sh("", &format!("sha256sum </tmp/{name}"))
            .limit(limit)
            .ok();
        assert_eq!(
            sum.split_whitespace().next(),
            Some(checksum(&there).as_str()),
            "on the way there"
        );
        self.kubectl("cp").arg(&remote).arg(&back).limit(limit).ok();
        assert_eq!(checksum(&back), checksum(&there), "on the way back");
        self.sh("", &format!("rm /tmp/{name}")).ok();
        fs::remove_dir_all(&directory).unwrap();
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}
