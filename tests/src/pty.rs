//! A command on a terminal: what a person at a shell has.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{command::Cmd, group, wait::wait_for};

/// A command whose terminal this is; dropping it ends the command.
#[derive(Debug)]
pub struct Terminal {
    side: File,
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a command on a terminal of this size.
    ///
    /// # Panics
    /// No terminal, or the command can't be started.
    #[track_caller]
    pub fn start(command: Cmd, rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let side = openpt(flags).expect("a pseudo-terminal is free");
        grantpt(&side).expect("it can be granted");
        unlockpt(&side).expect("it can be unlocked");
        let name = ptsname(&side, Vec::new()).expect("it has a name");
        let terminal = open(
            &name,
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let terminal = File::from(terminal.expect("it can be opened"));
        let side = File::from(side);
        tcsetwinsize(&side, size(rows, columns)).expect("a size can be set");
        // Its controlling terminal, or no resize is told to it.
        let command = command
            .env("TERM", "xterm")
            .under(["setsid", "--ctty", "--wait"]);
        let child = group::spawn(command.on_terminal(&terminal)).expect("the command starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut reader = side.try_clone().expect("a file can be cloned");
        let into = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..length]);
            }
        });
        Self { side, child, said }
    }

    /// All it has shown.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner))
            .into_owned()
    }

    /// Types.
    ///
    /// # Panics
    /// The terminal is gone.
    #[track_caller]
    pub fn keys(&mut self, keys: &str) {
        self.side
            .write_all(keys.as_bytes())
            .expect("a terminal takes keys");
    }

    /// Waits until the screen shows `text`.
    ///
    /// # Panics
    /// When it doesn't.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let bound = Duration::from_secs(20);
        let what = format!("{text:?} on the terminal");
        let shown = wait_or(bound, || self.screen().contains(text));
        assert!(shown, "{what} did not come; it shows:\n{}", self.screen());
    }

    /// Changes its size, as a person who drags a window's corner.
    ///
    /// # Panics
    /// The terminal is gone.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.side, size(rows, columns)).expect("a size can be set");
    }

    /// Waits for the end; its exit code.
    ///
    /// # Panics
    /// It goes on.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        wait_for(
            "the command on the terminal ends",
            Duration::from_secs(20),
            || self.child.try_wait().expect("a child can be waited for"),
        )
        .code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // `setsid` made it the leader of a session and a group, unless it wasn't that far.
        if matches!(self.child.try_wait(), Ok(None)) {
            group::kill(self.child.id());
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait_or(bound: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let since = crate::Stopwatch::new();
    while since.elapsed() < bound {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

const fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
