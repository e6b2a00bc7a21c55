//! Whom a gateway takes for its PostgreSQL.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use towline_test_postgresql::Server;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_proves_its_name_by_an_authority_that_is_named() {
    let server = Server::on_port("");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["db.example".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    server.write("server.crt", &certificate.pem());
    server.write("server.key", &key.serialize_pem());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.crt"), authority.pem()).unwrap();
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.sql(
        "postgres",
        "ALTER ROLE towline PASSWORD 'secret'; SELECT pg_reload_conf()",
    );
    let port = server.port();
    let open = async |host: &str, parameters: &str| {
        let url = format!("postgres://towline@{host}:{port}/postgres?{parameters}");
        let password = Some(Password::Given("secret".into()));
        let database = Database::parse(&url, dir.path(), password).unwrap();
        Store::open(&database).await
    };
    let store = open("localhost", "sslmode=verify-full&sslrootcert=ca.crt")
        .await
        .unwrap();
    let encrypted = "SELECT CAST(ssl AS INTEGER) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let encrypted: i64 = sqlx::query_scalar(encrypted)
        .fetch_one(store.reader().unwrap())
        .await
        .unwrap();
    assert_eq!(encrypted, 1);
    // Another name, and an authority that nobody knows.
    for (host, parameters) in [
        ("127.0.0.1", "sslmode=verify-full&sslrootcert=ca.crt"),
        ("localhost", "sslmode=verify-full"),
    ] {
        let error = open(host, parameters).await.unwrap_err();
        assert!(matches!(error, StoreError::Open(..)), "{host}: {error:?}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("certificate"), "{source}");
    }
}
