//! Process groups: what a test started ends with all that it started itself, and with the test.
//!
//! A program may have children (nginx's workers, what `faketime` runs), and the kernel's "parent died" reaches the
//! first process only. So each program leads a group of its own, which is ended as a whole. Shared parts of a test
//! are never dropped, and a test may be killed: a [`Warden`] outside of it ends what is left.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Reads `+ GROUP` and `- GROUP`; when nobody can write any more, kills those that are left.
const WARDEN: &str = r#"
declare -A groups
while read -r sign group; do
	case $sign in
	+) groups[$group]=yes ;;
	-) unset "groups[$group]" ;;
	esac
done
for group in "${!groups[@]}"; do kill -KILL -- "-$group"; done
"#;

/// A process that outlives this one by an instant.
struct Warden {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Warden {
    fn new() -> io::Result<Self> {
        let mut child = Command::new("bash")
            .args(["-c", WARDEN])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Control-C is for the test; this is for afterwards.
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    fn tell(&mut self, sign: char, group: u32) {
        if let Some(stdin) = &mut self.stdin {
            writeln!(stdin, "{sign} {group}").expect("the warden lives as long as the process");
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().ok();
    }
}

fn tell_warden(sign: char, group: u32) {
    static SHARED: LazyLock<Mutex<Warden>> =
        LazyLock::new(|| Mutex::new(Warden::new().expect("bash can be started")));
    SHARED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .tell(sign, group);
}

/// Starts a program that leads a group of its own.
pub(crate) fn lead(mut command: Command) -> io::Result<Child> {
    command.process_group(0);
    let child = spawn(command)?;
    tell_warden('+', child.id());
    Ok(child)
}

/// Ends the group of a program that [`lead`] started, before or just after the program was waited for.
pub(crate) fn end(leader: u32) {
    kill(leader);
    tell_warden('-', leader);
}

/// Kills a group.
pub(crate) fn kill(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        kill_process_group(pid, Signal::KILL).ok();
    }
}

type Start = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts a child from a thread that lives as long as the process: the kernel's "parent died" means the thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: LazyLock<mpsc::Sender<Start>> = LazyLock::new(|| {
        let (sender, commands) = mpsc::channel::<Start>();
        thread::spawn(move || {
            for (mut command, answer) in commands {
                answer.send(command.spawn()).ok();
            }
        });
        sender
    });
    let (answer, started) = mpsc::sync_channel(1);
    STARTER
        .send((command, answer))
        .expect("the starter lives as long as the process");
    started
        .recv()
        .expect("the starter lives as long as the process")
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::{Warden, spawn};
    use crate::{Cmd, Program, command::text_of, wait_for, wait_until};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A program with a child, and the child's process id.
    fn with_a_child(name: &str) -> (Program, String) {
        let script = "sleep 1000 & echo $!; wait";
        let mut program = Cmd::new("sh").args(["-c", script]).start(name);
        let child = program.line("the child's process id", PATIENCE, |line| !line.is_empty());
        assert!(lives(&child));
        (program, child)
    }

    /// Whoever should reap it may take its time.
    fn lives(pid: &str) -> bool {
        let status = text_of(&Path::new("/proc").join(pid).join("status"));
        status
            .lines()
            .any(|line| line.starts_with("State:") && !line.contains("(zombie)"))
    }

    fn is_gone(pid: &str) {
        wait_until("the child's end", PATIENCE, || !lives(pid));
    }

    #[test]
    fn a_program_takes_its_children_along() {
        let (program, child) = with_a_child("dropped");
        drop(program);
        is_gone(&child);
    }

    #[test]
    fn a_program_that_ends_by_itself_leaves_no_child() {
        let (mut program, child) = with_a_child("ends");
        program.signal(rustix::process::Signal::TERM);
        program.wait(PATIENCE);
        is_gone(&child);
    }

    #[test]
    fn a_test_that_dies_leaves_nothing() {
        use std::os::unix::process::CommandExt as _;
        let [mut left, mut forgotten] = [0, 1].map(|_| {
            let mut sleeps = std::process::Command::new("sleep");
            sleeps
                .arg("60")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .process_group(0);
            spawn(sleeps).unwrap()
        });
        let mut warden = Warden::new().unwrap();
        warden.tell('+', left.id());
        warden.tell('+', forgotten.id());
        warden.tell('-', forgotten.id());
        // What the kernel does to the pipe of a process that dies.
        drop(warden);
        let status = wait_for("the end of what was left", PATIENCE, || {
            left.try_wait().unwrap()
        });
        assert!(!status.success());
        assert!(forgotten.try_wait().unwrap().is_none());
        forgotten.kill().unwrap();
        forgotten.wait().unwrap();
    }
}
