//! Health, readiness and metrics, on a listener of their own.

use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::{app::Gateway, drain::Left};

/// Answers by the first digit of their status.
#[derive(Debug, Default)]
pub struct Requests([AtomicU64; 5]);

impl Requests {
    /// One more.
    pub fn count(&self, status: StatusCode) {
        if let Some(class) = self
            .0
            .get(usize::from(status.as_u16() / 100).saturating_sub(1))
        {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Serves until the gateway is gone; it outlives the public port, so that draining can be watched.
pub async fn run(gateway: Arc<Gateway>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let serving = Arc::clone(&gateway);
        gateway.tasks.spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&serving, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new());
            if let Err(error) = builder
                .serve_connection(TokioIo::new(stream), service)
                .await
            {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
}

fn answer(gateway: &Gateway, request: &Request<Incoming>) -> Response<Full<bytes::Bytes>> {
    let (status, text) = match request.uri().path() {
        "/livez" | "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if gateway.leaving.is_cancelled() => {
            let left = Left::of(gateway);
            let text = format!("draining, {} streams are left\n", left.streams);
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        // As long as requests are served from memory, a database that is away is no reason to send them elsewhere.
        "/readyz" if !gateway.store.is_believed() => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database has not been heard of for too long\n".to_owned(),
        ),
        "/readyz" => (StatusCode::OK, "ok\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics(gateway)),
        _ => (
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// Prometheus' text format.
fn metrics(gateway: &Gateway) -> String {
    let runtime = tokio::runtime::Handle::current().metrics();
    let (sessions, down) = gateway.tunnels.count();
    let gauges = [
        ("towline_sessions", "Agents' sessions.", sessions),
        (
            "towline_sessions_down",
            "Sessions that wait for another connection.",
            down,
        ),
        (
            "towline_streams",
            "Upgraded and long-running requests.",
            gateway.live.count(),
        ),
        (
            "towline_replicas",
            "Replicas that live, this one included.",
            gateway.replicas.others() + 1,
        ),
        (
            "towline_connections",
            "Connections on the public port.",
            gateway.connections.len(),
        ),
        (
            "towline_session_requests",
            "Requests in sessions, those that other replicas pass on included.",
            gateway.tunnels.requests(),
        ),
        (
            "towline_draining",
            "Whether the gateway is going, and waits for its streams.",
            usize::from(gateway.leaving.is_cancelled()),
        ),
        (
            "towline_tasks",
            "Live asynchronous tasks.",
            runtime.num_alive_tasks(),
        ),
    ];
    let mut text = format!(
        "# HELP towline_database_up Whether the database was in reach at the last try.\n\
         # TYPE towline_database_up gauge\ntowline_database_up {}\n",
        u8::from(gateway.store.away().is_none())
    );
    for (name, help, value) in gauges {
        let _written = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    }
    let (resumed, replayed) = gateway.tunnels.resumptions();
    let (requests, connections) = gateway.replicas.passed_on();
    for (name, help, value) in [
        (
            "towline_sessions_resumed_total",
            "How often a session went on over another connection.",
            resumed,
        ),
        (
            "towline_sessions_replayed_bytes_total",
            "Bytes sent again on those.",
            replayed,
        ),
        (
            "towline_requests_passed_on_total",
            "Requests that went to the replica that holds the session.",
            requests,
        ),
        (
            "towline_connections_passed_on_total",
            "Agents' connections that went to the replica that holds the session.",
            connections,
        ),
    ] {
        let _written = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}"
        );
    }
    let (reloads, failed) = gateway.people.reloads();
    let _written = writeln!(
        text,
        "# HELP towline_authentication_config_reloads_total How often a changed authentication_config was read.\n\
         # TYPE towline_authentication_config_reloads_total counter\n\
         towline_authentication_config_reloads_total {reloads}\n\
         # HELP towline_authentication_config_failed Whether the file as it is now can't be used.\n\
         # TYPE towline_authentication_config_failed gauge\n\
         towline_authentication_config_failed {}",
        u8::from(failed)
    );
    let _written = writeln!(
        text,
        "# HELP towline_answers_cut_total Answers cut because too many were not read.\n\
         # TYPE towline_answers_cut_total counter\ntowline_answers_cut_total {}",
        gateway.slow.cut()
    );
    let audit = gateway.audit.counts();
    for (name, help, value) in [
        ("written", "Audit events written.", audit.written()),
        (
            "dropped",
            "Audit events lost: there was no room, or the sink did not take them.",
            audit.dropped(),
        ),
    ] {
        let _written = writeln!(
            text,
            "# HELP towline_audit_events_{name}_total {help}\n# TYPE towline_audit_events_{name}_total counter\n\
             towline_audit_events_{name}_total {value}"
        );
    }
    text.push_str("# HELP towline_requests_total Answers on the public port.\n# TYPE towline_requests_total counter\n");
    for (class, count) in gateway.requests.0.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        let _written = writeln!(
            text,
            "towline_requests_total{{code=\"{}xx\"}} {count}",
            class + 1
        );
    }
    text
}
