//! A stand-in for a gateway: the sign-in for real, and management calls from a script.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread::JoinHandle,
};

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::provider::Idp;

/// The password and one-time code that it takes.
pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const CODE: &str = "ABCD-EFGH";

/// Ends with the value.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) authority_pem: String,
    pub(crate) authority_fingerprint: String,
    state: Arc<Mutex<State>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// How often a refresh token was presented.
    pub(crate) refreshes: usize,
    /// What `resource` the last refresh named.
    pub(crate) resource: Option<String>,
    /// As whom the last refresh wanted to act.
    pub(crate) acted_as: Option<String>,
    /// Tokens that were revoked.
    pub(crate) revoked: Vec<String>,
    /// The forms that were posted to sign in.
    pub(crate) forms: Vec<HashMap<String, String>>,
    /// Every management call, with its body.
    pub(crate) calls: Vec<(String, Value)>,
    /// What the next calls of a method answer; the last answer stays.
    answers: BTreeMap<String, VecDeque<(u16, Value)>>,
    /// No refresh token is taken any more.
    pub(crate) ended: bool,
    /// What the token endpoint answers instead.
    pub(crate) token_error: Option<(u16, String)>,
    /// Whom people sign in with, in the gateway's metadata.
    pub(crate) issuers: Value,
    /// An identity provider beside it.
    pub(crate) idp: Idp,
    /// Forms with which tokens were exchanged.
    pub(crate) exchanges: Vec<HashMap<String, String>>,
    /// Who asked for a job's token at `/github/token`, and what it was to be for.
    pub(crate) asked_of_github: Vec<String>,
    /// What the next exchanges are answered with.
    pub(crate) exchange_errors: Vec<(u16, Value)>,
    /// How many of the next refreshes are done and the connection closed without an answer.
    pub(crate) lose_answers: usize,
    /// Taken by the next token request, which tells and then waits.
    held: Option<(mpsc::Sender<()>, Arc<Notify>)>,
    release: Option<Arc<Notify>>,
    /// A refresh token that is taken once more, because its answer was lost.
    grace: Option<String>,
    lifetime: u64,
    codes: HashMap<String, String>,
    refresh_token: String,
    issued: usize,
    issuer: String,
}

impl Gateway {
    pub(crate) fn start() -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "stand-in");
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &Issuer::from_params(&authority, &authority_key))
            .unwrap();
        let chain = vec![
            certificate.der().clone(),
            authority_certificate.der().clone(),
        ];
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            lifetime: 600,
            issuer: format!("https://{address}/oauth2"),
            idp: Idp::at(address),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let (end, ended) = oneshot::channel();
        let serving = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, TlsAcceptor::from(Arc::new(tls)), serving) => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            address,
            authority_fingerprint: towline::trust::Fingerprint::of(authority_certificate.der())
                .to_string(),
            authority_pem: authority_certificate.pem(),
            state,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Scripts the next answer of a method.
    pub(crate) fn answer(&self, method: &str, status: u16, answer: Value) {
        self.state()
            .answers
            .entry(method.to_owned())
            .or_default()
            .push_back((status, answer));
    }

    /// How long access tokens are good, in seconds.
    pub(crate) fn set_lifetime(&self, seconds: u64) {
        self.state().lifetime = seconds;
    }

    /// Makes the next token request wait; the receiver hears when it is there.
    pub(crate) fn hold_token_requests(&self) -> mpsc::Receiver<()> {
        let (tell, seen) = mpsc::channel();
        let release = Arc::new(Notify::new());
        let mut state = self.state();
        state.release = Some(Arc::clone(&release));
        state.held = Some((tell, release));
        seen
    }

    pub(crate) fn release_token_requests(&self) {
        self.state().release.take().unwrap().notify_one();
    }

    /// From now on people sign in with the provider beside it.
    pub(crate) fn offer_provider(&self) {
        use base64::Engine as _;
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.authority_pem);
        let mut state = self.state();
        state.issuers = json!([{
            "name": "corp", "issuer": state.idp.issuer, "client_id": "towline-cli",
            "scopes": ["openid", "email", "groups", "offline_access"],
            "certificate_authority_data": authority,
        }]);
    }

    pub(crate) fn set_issuer(&self, issuer: &str) {
        self.state().issuer = issuer.to_owned();
    }

    /// Stops listening; what was seen stays.
    pub(crate) fn stop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            // Whoever doesn't believe the certificate goes away here.
            let Ok(stream) = tls.accept(tcp).await else {
                return;
            };
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { serve(request, &state).await.ok_or("the answer is lost") }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            drop(
                connection
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn serve(request: Request<Incoming>, state: &Mutex<State>) -> Option<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if head.uri.path() == "/oauth2/token" {
        let held = state.lock().unwrap().held.take();
        if let Some((tell, release)) = held {
            tell.send(()).unwrap();
            release.notified().await;
        }
    }
    let mut state = state.lock().unwrap();
    Some(match head.uri.path() {
        "/oauth2/.well-known/openid-configuration" => json_answer(
            200,
            &json!({"issuer": state.issuer, "towline_issuers": state.issuers.as_array().cloned().unwrap_or_default()}),
        ),
        "/github/token" => {
            let asked = form(head.uri.query().unwrap_or_default().as_bytes());
            assert_eq!(asked["api-version"], "2.0");
            let bearer = head.headers[header::AUTHORIZATION]
                .to_str()
                .unwrap()
                .to_owned();
            state.asked_of_github = vec![bearer, asked["audience"].clone()];
            json_answer(200, &json!({"value": "a.github.token"}))
        }
        path if path.starts_with("/idp/") => state.idp.serve(path, form(&body), now()),
        "/oauth2/authorize" => state.authorize(form(&body)),
        "/oauth2/token" => {
            let form = form(&body);
            let answer = state.token(&form);
            if form["grant_type"] == "refresh_token" && state.lose_answers > 0 {
                state.lose_answers -= 1;
                state.grace = Some(form["refresh_token"].clone());
                return None;
            }
            answer
        }
        "/oauth2/revoke" => {
            let form = form(&body);
            assert_eq!(form["client_id"], "towline");
            state.revoked.push(form["token"].clone());
            json_answer(200, &json!({}))
        }
        path => {
            let method = path
                .strip_prefix("/towline.v1.")
                .unwrap_or_else(|| panic!("unexpected {path}"));
            state.call(method, &head.headers, &body)
        }
    })
}

impl State {
    fn authorize(&mut self, form: HashMap<String, String>) -> Answer {
        assert_eq!(form["response_type"], "code");
        assert_eq!(form["client_id"], "towline");
        assert_eq!(form["code_challenge_method"], "S256");
        let proven = form
            .get("password")
            .is_some_and(|password| password == PASSWORD)
            || form.get("one_time_code").is_some_and(|code| code == CODE)
                && form.contains_key("new_password");
        let answer = if proven {
            let code = format!("code-{}", self.codes.len());
            self.codes
                .insert(code.clone(), form["code_challenge"].clone());
            let location = format!(
                "{}?code={code}&state={}",
                form["redirect_uri"], form["state"]
            );
            let answer = Response::builder()
                .status(303)
                .header(header::LOCATION, location);
            answer.body(Full::default()).unwrap()
        } else {
            json_answer(
                401,
                &json!({"error": "access_denied", "error_description": "wrong name or password"}),
            )
        };
        self.forms.push(form);
        answer
    }

    fn token(&mut self, form: &HashMap<String, String>) -> Answer {
        if let Some((status, body)) = &self.token_error {
            return Response::builder()
                .status(*status)
                .body(Full::from(body.clone()))
                .unwrap();
        }
        match form["grant_type"].as_str() {
            "authorization_code" => {
                use base64::Engine as _;
                let challenge = self
                    .codes
                    .remove(&form["code"])
                    .expect("a code that was given out");
                let digest = aws_lc_rs::digest::digest(
                    &aws_lc_rs::digest::SHA256,
                    form["code_verifier"].as_bytes(),
                );
                assert_eq!(
                    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest),
                    challenge
                );
            }
            "refresh_token" => {
                self.refreshes += 1;
                self.resource = form.get("resource").cloned();
                self.acted_as = form.get("impersonate_service_account").cloned();
                let presented = &form["refresh_token"];
                let known = *presented == self.refresh_token
                    || self.grace.take().as_ref() == Some(presented);
                if self.ended || !known {
                    return json_answer(
                        400,
                        &json!({"error": "invalid_grant", "error_description": "is over"}),
                    );
                }
            }
            "urn:ietf:params:oauth:grant-type:token-exchange" => return self.exchange(form),
            other => panic!("unexpected grant {other}"),
        }
        self.issued += 1;
        self.refresh_token = format!("refresh-{}", self.issued);
        json_answer(
            200,
            &json!({
                "access_token": format!("access-{}", self.issued),
                "token_type": "Bearer",
                "expires_in": self.lifetime,
                "refresh_token": self.refresh_token,
            }),
        )
    }

    fn exchange(&mut self, form: &HashMap<String, String>) -> Answer {
        self.exchanges.push(form.clone());
        if !self.exchange_errors.is_empty() {
            let (status, body) = self.exchange_errors.remove(0);
            return json_answer(status, &body);
        }
        self.issued += 1;
        json_answer(
            200,
            &json!({
                "access_token": format!("access-{}", self.issued),
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": self.lifetime,
            }),
        )
    }

    fn call(&mut self, method: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        assert!(
            headers[header::AUTHORIZATION]
                .to_str()
                .unwrap()
                .starts_with("Bearer access-")
        );
        self.calls
            .push((method.to_owned(), serde_json::from_slice(body).unwrap()));
        let answers = self.answers.get_mut(method);
        let answer = answers.and_then(|answers| {
            if answers.len() > 1 {
                answers.pop_front()
            } else {
                answers.front().cloned()
            }
        });
        match (answer, method) {
            (Some((status, answer)), _) => json_answer(status, &answer),
            (None, "Identity/WhoAmI") => json_answer(
                200,
                &json!({"principal": "user:alice", "username": "alice", "roles": ["gatewayOperator"]}),
            ),
            (None, "Memberships/List" | "Projects/List") => json_answer(200, &json!({})),
            (None, other) => panic!("nothing is scripted for {other}"),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a stand-in with the machine's clock"
)]
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn form(body: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

fn json_answer(status: u16, value: &Value) -> Answer {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(value.to_string()))
        .unwrap()
}
