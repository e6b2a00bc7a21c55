//! The program as its user meets it: processes, files and a gateway's stand-in.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where it can't go on"
)]

mod credential;
mod errors;
mod gateway;
mod get_credentials;
mod identities;
mod login;
mod manage;
mod people;
mod provider;
mod workloads;

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use gateway::{Gateway, PASSWORD};

/// A user with a home of their own.
struct User {
    home: tempfile::TempDir,
    gateway: String,
}

/// What a command left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl User {
    fn of(gateway: &Gateway) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("ca.pem"), &gateway.authority_pem).unwrap();
        std::fs::write(home.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        Self {
            home,
            gateway: gateway.url(),
        }
    }

    /// One who has signed in.
    fn signed_in(gateway: &Gateway) -> Self {
        let user = Self::of(gateway);
        user.login(&["--certificate-authority", "ca.pem"])
            .succeeds();
        user
    }

    fn login(&self, arguments: &[&str]) -> Ran {
        let mut all = vec![
            "login",
            &self.gateway,
            "--username",
            "alice",
            "--password-file",
            "password",
        ];
        all.extend(arguments);
        self.run(&all)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn credential(&self) -> Command {
        self.command(&[
            "credential",
            "--gateway",
            &self.gateway,
            "--membership",
            PROD,
        ])
    }
}

impl Ran {
    fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Exits with 1, and says all of `words` on standard error.
    fn fails(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.out, "", "a failure prints no result");
        for word in words {
            assert!(self.err.contains(word), "{word:?} in {}", self.err);
        }
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

const PROD: &str = "projects/p/locations/global/memberships/prod";
