//! A hostile agent: what it got is of no use to it, and what it answers harms nobody else.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use towline_proto::{
    assertion::Grant,
    end_to_end::{Possession, Proof},
    endpoint,
    handshake::{self, Confirmation, Facts, Opening},
    jws::KeyPair,
    names::Membership,
    session::Session,
    tunnel, wire,
};

use super::{
    double::{self, Answer, own},
    world::{Client, World, bounded},
};

const MEMBERSHIP: &str = "projects/p/locations/global/memberships/m";

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

fn at(path: &str) -> Request<Empty<Bytes>> {
    get(&format!("/v1/{MEMBERSHIP}{path}"))
}

/// Keeps every header and body that it gets, and answers 200.
fn keeping() -> (
    impl Fn(Request<Incoming>, Grant) -> futures_util::future::BoxFuture<'static, Answer>
    + Clone
    + Send
    + 'static,
    mpsc::UnboundedReceiver<(HeaderMap, Bytes)>,
) {
    let (tell, kept) = mpsc::unbounded_channel();
    let serve =
        move |request: Request<Incoming>, _| -> futures_util::future::BoxFuture<'static, Answer> {
            let tell = tell.clone();
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let body = body
                    .collect()
                    .await
                    .map_or_else(|_| Bytes::new(), |body| body.to_bytes());
                tell.send((head.headers, body)).unwrap();
                Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync())
            })
        };
    (serve, kept)
}

/// Every value, and every part of one, that could be a credential.
fn loot(headers: &[HeaderMap], bodies: &[Bytes]) -> BTreeSet<String> {
    let values = headers
        .iter()
        .flat_map(HeaderMap::values)
        .map(|value| value.as_bytes());
    let texts = values.chain(bodies.iter().map(|body| &body[..]));
    let mut loot = BTreeSet::new();
    for text in texts {
        let text = String::from_utf8_lossy(text).into_owned();
        for part in text.split([',', ' ', ';', '=', '"', '~']) {
            loot.insert(part.trim().to_owned());
        }
        loot.insert(text);
    }
    loot.retain(|text| !text.is_empty() && http::HeaderValue::from_str(text).is_ok());
    loot
}

#[tokio::test]
async fn what_an_agent_ever_got_opens_nothing_at_the_gateway() {
    let world = World::start().await;
    let (agent, mut kept) = keeping();
    world.agent(agent).await;
    let token = world.token("alice", None, 600);
    let alice = world.with_token(&token);

    // All kinds of requests, with every place for a credential filled, and what a session's opening tells the agent.
    let (mut headers, mut bodies) = (Vec::new(), Vec::new());
    let mut request = at("/api/v1/pods?limit=1");
    for (name, value) in [
        ("cookie", "towline=stolen"),
        ("proxy-authorization", "Basic c3RvbGVu"),
        ("x-remote-user", "stolen"),
        ("impersonate-user", "bob"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(alice.http1(request).await.status(), StatusCode::OK);
    assert_eq!(alice.http2(at("/version")).await.status(), StatusCode::OK);
    // A proof of who she is, as agents in end-to-end mode want one.
    let key = KeyPair::generate().unwrap();
    let now = towline_gateway::clock::Clock::System.unix();
    let id_token = format!("{}.e30.c2ln", "e30".repeat(3));
    let proof = Proof::new(id_token, Possession::state(&key, MEMBERSHIP, now)).to_header();
    let proving = world.with_token(&format!("{token}~{proof}"));
    assert_eq!(proving.http1(at("/version")).await.status(), StatusCode::OK);
    let (response, mut upload) = alice.upload("/api/v1/namespaces/n/configmaps").await;
    upload
        .send_data(Bytes::from_static(b"{\"data\":\"x\"}"), true)
        .unwrap();
    assert_eq!(bounded(response).await.unwrap().status(), StatusCode::OK);
    for _ in 0..4 {
        let (head, body) = bounded(kept.recv()).await.unwrap();
        headers.push(head);
        bodies.push(body);
    }
    headers.push(handshake_answer(&world).await);
    let loot = loot(&headers, &bodies);
    assert!(loot.len() > 15, "{loot:?}");
    assert!(loot.contains(&proof), "{loot:?}");
    assert!(
        loot.iter().any(|text| text.split('.').count() == 3),
        "grants are among it: {loot:?}"
    );
    for text in &loot {
        assert!(!text.contains(&token) && !text.contains("stolen"), "{text}");
    }

    // As a bearer token, in both places of one, wherever one is taken.
    for text in &loot {
        let thief = world.with_token(text);
        for path in [
            "/api/v1/pods".to_owned(),
            format!("/v1/{MEMBERSHIP}/api/v1/pods"),
            format!("/v1/{MEMBERSHIP}2/api/v1/pods"),
            "/oauth2/userinfo".to_owned(),
        ] {
            refused(&thief, get(&path), text).await;
        }
        for method in [
            "towline.v1.Memberships/List",
            "towline.v1.Projects/List",
            "towline.v1.Users/List",
        ] {
            let mut request = get(&format!("/{method}"));
            *request.method_mut() = Method::POST;
            refused(&thief, request, text).await;
        }
        for form in [
            ("refresh_token", "refresh_token"),
            ("authorization_code", "code"),
            (
                "urn:ietf:params:oauth:grant-type:token-exchange",
                "subject_token",
            ),
        ] {
            let status = token_request(&world, form, text).await;
            assert!(status.is_client_error(), "{form:?} {text}: {status}");
        }
        assert_ne!(connect(&world, text).await.status(), 101, "{text}");
    }
    // As the headers that they were, with and without somebody else's token.
    for stolen in &headers {
        for client in [world.with_token(""), world.as_user("nobody")] {
            let mut request = at("/api/v1/pods");
            *request.headers_mut() = stolen.clone();
            refused(&client, request, "all headers").await;
        }
    }
    assert!(kept.try_recv().is_err(), "none of it came down the tunnel");
}

async fn refused(client: &Client, request: Request<Empty<Bytes>>, what: &str) {
    let asked = format!("{} {}", request.method(), request.uri());
    let response = client.http1(request).await;
    let status = response.status();
    assert!(
        REFUSED.contains(&status.as_u16()),
        "{asked} with {what}: {status}"
    );
}

/// Not because there were too many.
const REFUSED: [u16; 4] = [400, 401, 403, 404];

/// What the gateway tells an agent when a session is opened.
async fn handshake_answer(world: &World) -> HeaderMap {
    let now = towline_gateway::clock::Clock::System.unix();
    let root = world.running.gateway().keys.root();
    let membership: Membership = MEMBERSHIP.parse().unwrap();
    let opening = Opening::new(&world.agent_key, membership, root, &Facts::default(), now).unwrap();
    let response = connect(world, opening.hello()).await;
    assert_eq!(response.status(), 101);
    let mut headers = response.headers().clone();
    headers.insert("hello", opening.hello().parse().unwrap());
    headers
}

/// `GET /agent/v1/connect` with this hello.
async fn connect(world: &World, hello: &str) -> Response<Incoming> {
    let mut request = get(endpoint::AGENT_CONNECT);
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", handshake::PROTOCOL),
        (
            handshake::VERSION_HEADER,
            handshake::VERSION.to_string().as_str(),
        ),
        (handshake::HELLO, hello),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    world.with_token("x").http1(request).await
}

async fn token_request(
    world: &World,
    (grant_type, field): (&str, &str),
    value: &str,
) -> StatusCode {
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let form = format!(
        "grant_type={}&{field}={}&client_id=towline&code_verifier={}&redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2F\
         &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt",
        encode(grant_type),
        encode(value),
        "v".repeat(43)
    );
    let stream = tokio::net::TcpStream::connect(world.running.public_address())
        .await
        .unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = own(async move { drop(connection.await) });
    let request = Request::post("/oauth2/token")
        .header(header::HOST, "gateway")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form)))
        .unwrap();
    let status = bounded(sender.send_request(request))
        .await
        .unwrap()
        .status();
    connection.abort();
    status
}

fn named(id: &str) -> Membership {
    format!("projects/p/locations/global/memberships/{id}")
        .parse()
        .unwrap()
}

/// Another cluster of project `p`, and its agent's key.
async fn enrolled(world: &World, id: &str) -> (Membership, KeyPair) {
    let (membership, key) = (named(id), KeyPair::generate().unwrap());
    let store = &world.running.gateway().store;
    store.register(&membership, false, id, 0, 10).await.unwrap();
    store
        .redeem(&membership, id, key.public(), 1)
        .await
        .unwrap();
    (membership, key)
}

#[tokio::test]
async fn an_agent_gets_no_other_clusters_requests() {
    let world = World::start().await;
    let (agent, mut of_m) = double::recording();
    world.agent(agent).await;
    let (membership, key) = enrolled(&world, "n").await;
    let (agent, mut of_n) = double::recording();
    let gateway = world.holder().gateway();
    let _agent = double::connect(
        world.holder().public_address(),
        &key,
        gateway.keys.root(),
        membership.clone(),
        agent,
    )
    .await;
    bounded(async {
        while gateway.tunnels.sessions(&membership) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let alice = world.as_user("alice");
    for _ in 0..8 {
        for id in ["m", "n"] {
            let path = format!("/v1/{}/of-{id}", named(id));
            assert_eq!(alice.http1(get(&path)).await.status(), StatusCode::OK);
        }
    }
    for (seen, path) in [(&mut of_m, "/of-m"), (&mut of_n, "/of-n")] {
        for _ in 0..8 {
            let (head, grant) = bounded(seen.recv()).await.unwrap();
            assert_eq!(head.uri.path(), path);
            assert!(path.ends_with(grant.membership.id.as_str()));
        }
        assert!(seen.try_recv().is_err());
    }
}

#[tokio::test]
async fn an_agent_speaks_for_its_own_membership_alone() {
    let world = World::start().await;
    let now = towline_gateway::clock::Clock::System.unix();
    let root = world.running.gateway().keys.root();
    // A cluster that is enrolled under a key of its own, and one that there isn't.
    let (_, theirs) = enrolled(&world, "n").await;
    assert_ne!(theirs.public(), world.agent_key.public());
    for other in ["n", "m2"] {
        let membership = named(other);
        let opening =
            Opening::new(&world.agent_key, membership, root, &Facts::default(), now).unwrap();
        assert_eq!(
            connect(&world, opening.hello()).await.status(),
            403,
            "{other}"
        );
    }
    // The same hello a second time is somebody else's.
    let membership: Membership = MEMBERSHIP.parse().unwrap();
    let opening = Opening::new(&world.agent_key, membership, root, &Facts::default(), now).unwrap();
    assert_eq!(connect(&world, opening.hello()).await.status(), 101);
    assert_eq!(connect(&world, opening.hello()).await.status(), 401);
}

#[tokio::test]
async fn who_replays_a_hello_gets_no_session() {
    let world = World::start().await;
    let now = towline_gateway::clock::Clock::System.unix();
    let root = world.running.gateway().keys.root();
    for said in [&[][..], &[0; Confirmation::LENGTH]] {
        // An agent's hello that it didn't use here: at another replica, say. Its share went with it.
        let opening = Opening::new(
            &world.agent_key,
            MEMBERSHIP.parse().unwrap(),
            root,
            &Facts::default(),
            now,
        )
        .unwrap();
        let gateway = world.holder().public_address();
        let (_, mut connection) = double::switch(gateway, opening.hello()).await.unwrap();
        connection.write_all(said).await.unwrap();
        let session = Session::new("replayed".to_owned(), connection);
        let handle = session.handle();
        let service = service_fn(|_: Request<Incoming>| {
            std::future::ready(Ok::<Response<Empty<Bytes>>, hyper::Error>(
                Response::default(),
            ))
        });
        let serving = tunnel::server().serve_connection(TokioIo::new(session), service);
        assert!(bounded(serving).await.is_err());
        assert!(handle.is_over());
        assert_eq!(world.sessions(), 0);
    }
}

#[tokio::test]
async fn what_an_agent_answers_speaks_for_nobody_but_its_cluster() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| {
            let mut response: Answer =
                Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            let headers: &[(&str, &str)] = match request.uri().path() {
                "/cookies" => &[
                    ("set-cookie", "towline-sign-in=fixed; Path=/"),
                    ("strict-transport-security", "max-age=0"),
                    ("clear-site-data", "\"*\""),
                    ("alt-svc", "h3=\"evil.example:443\""),
                    ("towline-request-id", "forged"),
                    ("audit-id", "forged"),
                    ("towline-groups-left-out", "99999999999999999999"),
                    ("towline-anything", "x"),
                    ("connection", "x-hop"),
                    ("x-hop", "x"),
                    ("location", "https://evil.example/"),
                ],
                "/refusal" => &[(wire::REFUSAL, "made-up")],
                "/upgraded" => &[(wire::UPGRADED, "websocket")],
                _ => &[],
            };
            for (name, value) in headers {
                response.headers_mut().append(*name, value.parse().unwrap());
            }
            std::future::ready(response)
        })
        .await;
    let alice = world.as_user("alice");
    let response = alice.http1(at("/cookies")).await;
    let id = response.headers()["towline-request-id"].to_str().unwrap();
    assert_ne!(id, "forged");
    let audit = response.headers().get_all("audit-id").iter();
    assert_eq!(audit.collect::<Vec<_>>(), [id]);
    let mut names: Vec<&str> = response
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "audit-id",
            "content-length",
            "date",
            "location",
            "towline-request-id"
        ]
    );
    for path in ["/refusal", "/upgraded"] {
        assert_eq!(
            alice.http1(at(path)).await.status(),
            StatusCode::BAD_GATEWAY,
            "{path}"
        );
    }
}

/// On the wire, where an HTTP library wouldn't send it.
#[tokio::test]
async fn an_agent_that_breaks_http_harms_its_own_requests_alone() {
    let world = World::start().await;
    let serve = |session: Session| async move {
        let mut connection = h2::server::handshake(session).await.unwrap();
        while let Some(Ok((request, mut answer))) = connection.accept().await {
            let head = |status: u16| Response::builder().status(status);
            match request.uri().path() {
                // As many as it can before the end.
                "/storm" => {
                    for _ in 0..10_000 {
                        let early = head(103).header("link", "x".repeat(100)).body(()).unwrap();
                        if answer.send_informational(early).is_err() {
                            break;
                        }
                    }
                    drop(answer.send_response(head(200).body(()).unwrap(), true));
                }
                "/giant" => {
                    let mut giant = head(200);
                    for n in 0..2000 {
                        giant = giant.header(format!("x-{n}"), "g".repeat(8000));
                    }
                    drop(answer.send_response(giant.body(()).unwrap(), true));
                }
                "/switched" => drop(answer.send_response(head(101).body(()).unwrap(), true)),
                "/lies" => {
                    let lie = head(200).header("content-length", "1000").body(()).unwrap();
                    if let Ok(mut body) = answer.send_response(lie, false) {
                        drop(body.send_data(Bytes::from_static(b"short"), true));
                    }
                }
                _ => drop(answer.send_response(head(200).body(()).unwrap(), true)),
            }
        }
    };
    let alice = world.as_user("alice");
    for path in ["/storm", "/giant", "/switched", "/lies"] {
        let agent = double::connect_raw(
            world.holder().public_address(),
            &world.agent_key,
            world.running.gateway().keys.root(),
            MEMBERSHIP.parse().unwrap(),
            serve,
        )
        .await;
        bounded(async {
            while world.sessions() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let response = alice.http1(at(path)).await;
        let status = response.status();
        let whole = bounded(response.into_body().collect()).await.is_ok();
        assert_ne!(status, 101, "{path}");
        assert!(
            status == 200 && path == "/storm" || status.is_server_error() || !whole,
            "{path}: {status} {whole}"
        );
        // The gateway goes on, and a new session of the same agent serves.
        drop(agent);
        bounded(async {
            while world.sessions() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let (agent, _seen) = double::recording();
        world.agent(agent).await;
        assert_eq!(
            alice.http1(at("/version")).await.status(),
            StatusCode::OK,
            "after {path}"
        );
        world.cut_agents();
        bounded(async {
            while world.sessions() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}
