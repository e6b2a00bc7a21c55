//! The same tests on SQLite and on PostgreSQL.

use std::path::Path;

use towline_test_postgresql::Server;

use super::{Database, Store};

/// On what a test runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum On {
    Sqlite,
    Postgresql,
}

impl On {
    /// An empty store.
    pub(super) async fn open(self) -> Store {
        match self {
            Self::Sqlite => Store::in_memory().await.unwrap(),
            Self::Postgresql => Store::open(&self.lasting(Path::new(""))).await.unwrap(),
        }
    }

    /// A database that is there for longer than a store: a file in `dir`, or one of the server's.
    pub(super) fn lasting(self, dir: &Path) -> Database {
        let url = match self {
            Self::Sqlite => "sqlite:t.db".to_owned(),
            Self::Postgresql => Server::shared().database(),
        };
        Database::parse(&url, dir, None).unwrap()
    }
}

/// Makes two tests of each function.
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::store::testing::On::Sqlite).await;
            })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::store::testing::On::Postgresql).await;
            })*
        }
    };
}

pub(super) use on_both;
