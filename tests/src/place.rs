//! Where things are: the tree, the programs under test, the cache, this run's directory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::LazyLock,
    time::Duration,
};

use crate::command::Cmd;

/// The top of the checkout.
pub fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the tree")
}

/// A variable of the environment, if it is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "the harness has no command line: tests/run.sh speaks through these"
)]
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether what takes long is asked for (`tests/run.sh --full`).
pub fn full() -> bool {
    variable("TOWLINE_FULL").is_some_and(|value| value != "0")
}

/// A program under test: from `TOWLINE_BIN_DIR`, else beside this test's own build.
pub fn program(name: &str) -> PathBuf {
    let directory = variable("TOWLINE_BIN_DIR").map_or_else(
        || {
            // target/debug/deps/kubectl-0123abcd, or target/debug/soak
            let own = env::current_exe().expect("a test knows its path");
            let mut directories = own.ancestors().skip(1);
            directories
                .find(|directory| !directory.ends_with("deps"))
                .expect("tests are built into target/PROFILE")
                .to_owned()
        },
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.exists(),
        "there is no {}: cargo build -p towline-gateway -p towline-agent -p towline (or set TOWLINE_BIN_DIR)",
        path.display()
    );
    path
}

/// A program under test that is linked dynamically, for what works by preloading: from `TOWLINE_DYNAMIC_BIN_DIR`, else
/// built.
pub fn dynamic(name: &str) -> PathBuf {
    if let Some(directory) = variable("TOWLINE_DYNAMIC_BIN_DIR") {
        return PathBuf::from(directory).join(name);
    }
    let target = cache().join("tests/target");
    let cargo = variable("CARGO").unwrap_or_else(|| "cargo".to_owned());
    let build = Cmd::new(cargo)
        .words("build --locked --package")
        .args([name, "--bin", name, "--target-dir"])
        .arg(variable("CARGO_TARGET_DIR").map_or(target, PathBuf::from))
        .args(["--message-format", "json-render-diagnostics"])
        .directory(tree())
        .limit(Duration::from_secs(900));
    let kept = ["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
    let build = kept
        .iter()
        .filter_map(|name| Some((name, variable(name)?)))
        .fold(build, |b, (n, v)| b.env(n, v));
    let said = build.ok();
    let messages = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = messages
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    path.expect("cargo names what it built")
}

/// Words before a program (see [`dynamic`]) that shift its clock by `+1h`; durations stay as they are.
pub fn clock(shift: &str) -> String {
    format!("env FAKETIME_DONT_FAKE_MONOTONIC=1 faketime -f {shift}")
}

/// Where `tests/cluster` keeps what it built, and these tests what they download or build.
pub fn cache() -> PathBuf {
    variable("TOWLINE_CACHE").map_or_else(
        || {
            PathBuf::from(variable("HOME").unwrap_or_else(|| "/root".to_owned()))
                .join(".cache/towline")
        },
        PathBuf::from,
    )
}

/// A program of the cluster's cache, such as `kubectl-1.29`.
pub fn cached(name: &str) -> PathBuf {
    let path = cache().join("bin").join(name);
    assert!(
        path.exists(),
        "there is no {}: tests/cluster/cluster build all",
        path.display()
    );
    path
}

/// This run's directory, with the logs of every program; kept until the next run of the same test.
pub fn run_directory() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = env::current_exe().expect("a test knows its path");
        let name = own
            .file_name()
            .expect("a program has a name")
            .to_string_lossy()
            .into_owned();
        let topic = name
            .rsplit_once('-')
            .map_or(name.as_str(), |(topic, _)| topic);
        let all = env::temp_dir().join("towline-tests");
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let old = entry.file_name().to_string_lossy().into_owned();
            let ended = |pid: &str| !Path::new("/proc").join(pid).exists();
            if old
                .rsplit_once('.')
                .is_some_and(|(of, pid)| of == topic && ended(pid))
            {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        let directory = all.join(format!("{topic}.{}", process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory can be made");
        name_logs_on_panic(directory.clone());
        directory
    });
    &DIRECTORY
}

fn name_logs_on_panic(directory: PathBuf) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        #[expect(clippy::print_stderr, reason = "whoever reads the failure needs it")]
        {
            eprintln!("logs of all programs: {}", directory.display());
        }
    }));
}

/// A directory of its own under [`run_directory`].
pub fn directory(name: &str) -> PathBuf {
    (0..)
        .map(|n| {
            run_directory().join(if n == 0 {
                name.to_owned()
            } else {
                format!("{name}-{n}")
            })
        })
        .find(|path| fs::create_dir(path).is_ok())
        .expect("one of all names is free")
}
