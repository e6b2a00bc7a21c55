//! Liveness, readiness and a few gauges, for kubelet and whoever scrapes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use crate::state::State;

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);

/// How long to wait where the system gives no connection (no file descriptors left).
const PAUSE: Duration = Duration::from_millis(100);

/// Answers on `listener` for as long as it is polled.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        if connections.len() >= MAX_CONNECTIONS {
            drop(connections.join_next().await);
        }
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = stream else {
            sleep(PAUSE).await;
            continue;
        };
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let response = answer(&request, &state);
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .keep_alive(false);
            // A scraper that goes away is its own affair.
            drop(
                builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

fn answer(request: &Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if state.ready() => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no session with the gateway\n".to_owned(),
        ),
        "/metrics" => (StatusCode::OK, metrics(state)),
        _ => (
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn metrics(state: &State) -> String {
    let (short, long) = state.connections();
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let mut text = String::new();
    for (name, help, value) in [
        (
            "towline_agent_sessions",
            "Sessions with the gateway.",
            state.sessions(),
        ),
        (
            "towline_agent_sessions_wanted",
            "Sessions that it means to have, to as many replicas.",
            state.wanted(),
        ),
        (
            "towline_agent_sessions_leaving",
            "Sessions with replicas that are going.",
            state.leaving(),
        ),
        (
            "towline_agent_streams",
            "Streams being served.",
            state.streams(),
        ),
        ("towline_agent_tasks", "Tasks alive.", tasks),
    ] {
        text.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        ));
    }
    text.push_str(&format!(
        "# HELP towline_agent_sessions_resumed_total How often a session went on over another connection.\n\
         # TYPE towline_agent_sessions_resumed_total counter\ntowline_agent_sessions_resumed_total {}\n",
        state.resumptions()
    ));
    let name = "towline_agent_upstream_connections";
    text.push_str(&format!(
        "# HELP {name} HTTP/2 connections to the API server.\n# TYPE {name} gauge\n\
         {name}{{pool=\"short\"}} {short}\n{name}{{pool=\"long\"}} {long}\n"
    ));
    text
}
