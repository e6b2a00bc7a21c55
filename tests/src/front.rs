//! What may stand between: nginx and HAProxy in front of a gateway, and the HTTP proxies that agents dial through.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    cluster::Cluster,
    command::{Cmd, text_of},
    gateway::{Gateway, free_port},
    place,
    program::Program,
    wait::wait_until,
};

/// How long a middlebox may take to listen.
const UP: Duration = Duration::from_secs(10);

/// What terminates TLS in front of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `deploy/proxies/nginx.conf`.
    Nginx,
    /// `deploy/proxies/haproxy.cfg`.
    Haproxy,
}

impl Kind {
    /// `nginx` or `haproxy`.
    ///
    /// # Panics
    /// Neither.
    pub fn named(name: &str) -> Self {
        match name {
            "nginx" => Self::Nginx,
            "haproxy" => Self::Haproxy,
            other => {
                panic!("there is no middlebox {other:?}: TOWLINE_TEST_FRONT is nginx or haproxy")
            }
        }
    }
}

/// A middlebox that runs; dropping it ends it.
#[derive(Debug)]
pub struct Front {
    /// The process.
    pub program: Program,
    /// The directory with its configuration and logs.
    pub directory: PathBuf,
    /// Where it listens.
    pub address: String,
    /// Which one, if it terminates TLS before a gateway.
    pub kind: Option<Kind>,
}

/// A gateway behind a middlebox; `change` edits the middlebox's configuration first.
#[track_caller]
pub fn gateway_behind(
    kind: Kind,
    name: &str,
    cluster: &Cluster,
    change: impl FnOnce(String) -> String,
) -> (Gateway, Front) {
    let ip = cluster.host_ip();
    let port = free_port();
    let mut gateway = Gateway::init_as(name, cluster, Some(&format!("https://{ip}:{port}")));
    let configuration = gateway.configuration();
    let file = |key: &str| {
        gateway.state.join(
            configuration["tls"][key]
                .as_str()
                .expect("init wrote a path"),
        )
    };
    let (certificate, key) = (file("certificate"), file("key"));
    gateway.configure(&format!(
        "listen = \"127.0.0.1:{}\"\ntls = {{mode = \"off\"}}\ntrusted_proxies = [\"127.0.0.1\"]",
        gateway.port
    ));
    "127.0.0.1".clone_into(&mut gateway.ip);
    let front = start(
        kind,
        name,
        &format!("{ip}:{port}"),
        &gateway,
        (&certificate, &key),
        change,
    );
    gateway.run();
    (gateway, front)
}

#[track_caller]
fn start(
    kind: Kind,
    name: &str,
    address: &str,
    gateway: &Gateway,
    (certificate, key): (&Path, &Path),
    change: impl FnOnce(String) -> String,
) -> Front {
    let directory = place::directory(&format!("{name}-front"));
    let upstream = format!("{}:{}", gateway.ip, gateway.port);
    let file = match kind {
        Kind::Nginx => "nginx.conf",
        Kind::Haproxy => "haproxy.cfg",
    };
    let mut text = fs::read_to_string(place::tree().join("deploy/proxies").join(file))
        .expect("the kept configuration");
    let here = |name: &str| directory.join(name).display().to_string();
    let pem = here("tls.pem");
    fs::write(&pem, [text_of(certificate), text_of(key)].concat()).expect("a file can be written");
    // Only places are put in; everything else is what the documents show.
    let places: Vec<(&str, String)> = match kind {
        Kind::Nginx => vec![
            ("listen 443 ", format!("listen {address} ")),
            ("127.0.0.1:8080", upstream),
            ("gateway.example.com", "_".to_owned()),
            ("/etc/towline/tls.crt", certificate.display().to_string()),
            ("/etc/towline/tls.key", key.display().to_string()),
            ("/run/nginx.pid", here("nginx.pid")),
            (
                "/var/log/nginx/error.log warn",
                format!("{} warn", here("error.log")),
            ),
            (
                "access_log off;",
                format!(
                    "access_log {};\n    client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; \
                 uwsgi_temp_path {}; scgi_temp_path {};",
                    here("access.log"),
                    here("a"),
                    here("b"),
                    here("c"),
                    here("d"),
                    here("e")
                ),
            ),
        ],
        Kind::Haproxy => vec![
            ("bind :443 ", format!("bind {address} ")),
            ("127.0.0.1:8080", upstream),
            ("/etc/towline/tls.pem", pem),
        ],
    };
    for (from, to) in places {
        assert!(
            text.contains(from),
            "deploy/proxies/{file} has no {from:?} any more"
        );
        text = text.replace(from, &to);
    }
    let path = directory.join(file);
    fs::write(&path, change(text)).expect("a file can be written");
    let command = match kind {
        Kind::Nginx => Cmd::new("nginx")
            .arg("-e")
            .arg(here("error.log"))
            .args(["-g", "daemon off;", "-c"])
            .arg(&path),
        Kind::Haproxy => Cmd::new("haproxy").args(["-db", "-f"]).arg(&path),
    };
    let mut front = Front {
        program: in_sbin(command).start(name),
        directory,
        address: address.to_owned(),
        kind: Some(kind),
    };
    front.wait_listening();
    front
}

/// Debian keeps servers where only root's path looks.
pub(crate) fn in_sbin(command: Cmd) -> Cmd {
    let path = place::variable("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"))
}

impl Front {
    #[track_caller]
    fn wait_listening(&mut self) {
        let address = self.address.clone();
        wait_until(&format!("something listens on {address}"), UP, || {
            assert!(
                self.program.runs(),
                "it ended: {}{}",
                self.program.err(),
                self.program.out()
            );
            std::net::TcpStream::connect(&address).is_ok()
        });
    }

    /// A file that it writes.
    pub fn log(&self, name: &str) -> String {
        text_of(&self.directory.join(name))
    }
}

/// An HTTP proxy with a user `agent` and a password, on the caller's side of `cluster`'s link.
#[track_caller]
pub fn squid(cluster: &Cluster, password: &str) -> Front {
    let directory = place::directory("squid");
    let address = format!("{}:{}", cluster.host_ip(), free_port());
    let here = |name: &str| directory.join(name).display().to_string();
    let hashed = Cmd::new("openssl").args(["passwd", "-apr1", password]).ok();
    fs::write(here("users"), format!("agent:{hashed}")).expect("a file can be written");
    let text = format!(
        "http_port {address}\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {users}\n\
         acl users proxy_auth REQUIRED\n\
         http_access allow CONNECT users\n\
         http_access deny all\n\
         access_log stdio:{access}\ncache_log {log}\npid_filename {pid}\ncoredump_dir {dir}\n\
         cache_effective_user proxy\ncache deny all\nvia off\n",
        users = here("users"),
        access = here("access.log"),
        log = here("cache.log"),
        pid = here("squid.pid"),
        dir = directory.display(),
    );
    fs::write(here("squid.conf"), text).expect("a file can be written");
    // squid gives up root for the user `proxy`.
    for ancestor in directory
        .ancestors()
        .take_while(|path| path.starts_with(std::env::temp_dir()))
    {
        Cmd::new("chmod").args(["go+x"]).arg(ancestor).run();
    }
    Cmd::new("chown")
        .args(["-R", "proxy:proxy"])
        .arg(&directory)
        .ok();
    let command = Cmd::new("squid").args(["-N", "-f"]).arg(here("squid.conf"));
    let mut front = Front {
        program: in_sbin(command).start("squid"),
        directory,
        address,
        kind: None,
    };
    front.wait_listening();
    front
}

/// Another HTTP proxy, smaller, with the same user.
#[track_caller]
pub fn tinyproxy(cluster: &Cluster, password: &str) -> Front {
    let directory = place::directory("tinyproxy");
    let ip = cluster.host_ip();
    let port = free_port();
    let text = format!(
        "Port {port}\nListen {ip}\nTimeout 600\nMaxClients 100\nBasicAuth agent {password}\nLogFile \"{}\"\nLogLevel Connect\n",
        directory.join("access.log").display()
    );
    let path = directory.join("tinyproxy.conf");
    fs::write(&path, text).expect("a file can be written");
    let command = Cmd::new("tinyproxy").args(["-d", "-c"]).arg(&path);
    let mut front = Front {
        program: in_sbin(command).start("tinyproxy"),
        directory,
        address: format!("{ip}:{port}"),
        kind: None,
    };
    front.wait_listening();
    front
}

/// TLS in front of an HTTP proxy, with a certificate that the gateway's authority signed.
#[track_caller]
pub fn tls_before(proxy: &Front, gateway: &Gateway) -> Front {
    let directory = place::directory("tls-proxy");
    let configuration = gateway.configuration();
    let file = |key: &str| {
        text_of(
            &gateway.state.join(
                configuration["tls"][key]
                    .as_str()
                    .expect("init wrote a path"),
            ),
        )
    };
    let pem = directory.join("tls.pem");
    fs::write(&pem, [file("certificate"), file("key")].concat()).expect("a file can be written");
    let ip = proxy.address.split(':').next().unwrap_or_default();
    let address = format!("{ip}:{}", free_port());
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen tls\n  bind {address} ssl crt {}\n  server proxy {}\n",
        pem.display(),
        proxy.address
    );
    let path = directory.join("haproxy.cfg");
    fs::write(&path, text).expect("a file can be written");
    let command = Cmd::new("haproxy").args(["-db", "-f"]).arg(&path);
    let mut front = Front {
        program: in_sbin(command).start("tls-proxy"),
        directory,
        address,
        kind: None,
    };
    front.wait_listening();
    front
}
