//! A request as it travels: the caller's method, path, headers and body, with the grant beside them (see `wire`).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio_util::sync::CancellationToken;
use towline_proto::{
    assertion::{Nested, Sealed, SessionKey},
    body::{self, Aborted},
    end_to_end::Proof,
    wire,
};

use super::{Granted, repeatable::Shared, text};
use crate::{
    assert::{self, Fault, Outbound},
    error::Refused,
    quota::Lease,
};

/// What travels in a request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, Aborted>;

/// A request on its way. Grant and seal are of one session; before another try they are set anew.
#[derive(Debug)]
pub(crate) struct Message {
    request: Request<RequestBody>,
    /// What is written into the body, for an upgrade.
    outgoing: Option<body::Sender>,
    fault: Fault,
    again: Again,
}

/// What another try takes.
#[derive(Debug)]
enum Again {
    /// There is no body.
    Nothing,
    /// Nothing is written into an upgrade's body before its answer.
    Upgrade,
    /// The caller's body, as much as was sent of it.
    Body(Shared),
    /// It can't be tried again.
    Never,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// Whoever it was sent to says that nothing was done with it: it may go another way.
    NotTaken,
    /// It can't be said what became of it, or it is refused for good.
    Refused(Refused),
}

impl From<Refused> for Unanswered {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unanswered> for Refused {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NotTaken => Self::AgentLost,
            Unanswered::Refused(refused) => refused,
        }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) outgoing: Option<body::Sender>,
}

impl Message {
    /// An authorized request, before a session was found for it.
    ///
    /// # Errors
    /// 400 for what can't be said in HTTP.
    pub(crate) fn new(outbound: Outbound) -> Result<(Self, Lease), Refused> {
        let request_id = text(outbound.request_id())?;
        let nested = outbound.nested().map(Nested::to_header);
        let proof = outbound.proof().map(Proof::to_header);
        let (lease, method, mut headers, caller) = outbound.into_parts();
        let fault = caller.fault();
        let target = lease.permit().target();
        headers.insert(wire::REQUEST_ID, request_id);
        if let Some(proof) = &proof {
            headers.insert(wire::PROOF, text(proof)?);
        }
        if let Some(nested) = &nested {
            headers.insert(wire::NESTED, text(nested)?);
        }
        let (body, outgoing, method, again) = match assert::upgrade(&target.kind) {
            Some(protocol) => {
                headers.insert(wire::UPGRADE, text(protocol)?);
                headers.insert(wire::METHOD, text(method.as_str())?);
                headers.remove(http::header::CONTENT_LENGTH);
                let (outgoing, channel) = body::channel();
                let body = channel.boxed_unsync();
                (body, Some(outgoing), Method::POST, Again::Upgrade)
            }
            None if caller.is_empty() => (nothing(), None, method, Again::Nothing),
            None => {
                let shared = Shared::new(caller);
                let body = shared.sending().map(|body| body.boxed_unsync());
                (
                    body.unwrap_or_else(nothing),
                    None,
                    method,
                    Again::Body(shared),
                )
            }
        };
        let uri = Uri::builder()
            .scheme("https")
            .authority("towline.invalid")
            .path_and_query(target.path.as_str())
            .build()
            .map_err(|error| Refused::Path(error.to_string()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let message = Self {
            request,
            outgoing,
            fault,
            again,
        };
        Ok((message, lease))
    }

    /// What the same takes once more.
    pub(crate) fn spare(&self) -> Spare {
        let mut head = Request::new(());
        head.method_mut().clone_from(self.request.method());
        head.uri_mut().clone_from(self.request.uri());
        head.headers_mut().clone_from(self.request.headers());
        Spare {
            head,
            again: match &self.again {
                Again::Nothing => Again::Nothing,
                Again::Upgrade => Again::Upgrade,
                Again::Body(shared) => Again::Body(shared.clone()),
                Again::Never => Again::Never,
            },
            fault: Arc::clone(&self.fault),
        }
    }

    /// Says in whose name it is, to the agent of one session.
    pub(crate) fn grant(&mut self, granted: Granted) {
        let headers = self.request.headers_mut();
        headers.insert(wire::GRANT, granted.statement);
        match granted.chain {
            Some(chain) => drop(headers.insert(wire::GRANT_CHAIN, chain)),
            None => drop(headers.remove(wire::GRANT_CHAIN)),
        }
    }

    /// A request that another replica has authorized, and whose grant was verified here.
    pub(super) fn passed_on(request: Request<RequestBody>) -> Self {
        Self {
            request,
            outgoing: None,
            fault: Fault::default(),
            again: Again::Never,
        }
    }

    /// Says something to the replica that passes it on, in a header.
    ///
    /// # Errors
    /// 400 for what can't stand in one.
    pub(crate) fn address(&mut self, name: &'static str, value: &str) -> Result<(), Refused> {
        self.request.headers_mut().insert(name, text(value)?);
        Ok(())
    }

    /// Seals it for one session, once.
    ///
    /// # Errors
    /// 400 for what can't be said in HTTP.
    pub(super) fn seal(&mut self, key: &SessionKey) -> Result<(), Refused> {
        let headers = self.request.headers();
        let sealed = Sealed {
            grant: said(headers, wire::GRANT),
            request_id: said(headers, wire::REQUEST_ID),
            method: match said(headers, wire::METHOD) {
                "" => self.request.method().as_str(),
                method => method,
            },
            upgrade: said(headers, wire::UPGRADE),
            path: self
                .request
                .uri()
                .path_and_query()
                .map_or("", |path| path.as_str()),
            nested: said(headers, wire::NESTED),
        };
        let (sequence, mac) = key.seal(&sealed);
        let headers = self.request.headers_mut();
        headers.insert(wire::MAC, text(&mac)?);
        headers.insert(wire::SEQUENCE, HeaderValue::from(sequence));
        Ok(())
    }

    /// Sends it and waits for the answer's head.
    ///
    /// # Errors
    /// What is at the other end is gone, or going.
    pub(crate) async fn send(
        self,
        requests: &SendRequest<RequestBody>,
        closed: &CancellationToken,
    ) -> Result<Answered, Unanswered> {
        let Self {
            request,
            outgoing,
            fault,
            ..
        } = self;
        let response = tokio::select! {
            // A lost session is the better reason than the error that it causes.
            biased;
            () = closed.cancelled() => return Err(Refused::AgentLost.into()),
            response = requests.clone().send_request(request) => response.map_err(|error| {
                tracing::debug!(error = &error as &dyn std::error::Error, "no answer through the tunnel");
                // A caller whose body was refused is told that, and not to try again.
                match fault.get() {
                    Some(fault) => Unanswered::Refused(Refused::Header(fault.clone())),
                    None if not_taken(&error) => Unanswered::NotTaken,
                    None => Unanswered::Refused(Refused::AgentLost),
                }
            })?,
        };
        Ok(Answered { response, outgoing })
    }
}

/// Whether the other end says that it did nothing with a request: HTTP/2's `REFUSED_STREAM`, or a `GOAWAY` with a number
/// before the request's (RFC 9113 §6.8, §8.7); or it never left.
fn not_taken(error: &hyper::Error) -> bool {
    let of_http2 = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| {
            error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
    of_http2 || error.is_canceled()
}

fn nothing() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request that may have to be sent again.
#[derive(Debug)]
pub(crate) struct Spare {
    head: Request<()>,
    again: Again,
    fault: Fault,
}

impl Spare {
    /// The request once more; `None` if something of it is gone.
    pub(crate) fn again(self) -> Option<Message> {
        let (body, outgoing) = match &self.again {
            Again::Nothing => (nothing(), None),
            Again::Upgrade => {
                let (outgoing, channel) = body::channel();
                (channel.boxed_unsync(), Some(outgoing))
            }
            Again::Body(shared) => (shared.sending()?.boxed_unsync(), None),
            Again::Never => return None,
        };
        Some(Message {
            request: self.head.map(|()| body),
            outgoing,
            fault: self.fault,
            again: self.again,
        })
    }

    /// There is an answer.
    pub(crate) fn answered(self) {
        if let Again::Body(shared) = self.again {
            shared.answered();
        }
    }
}

/// A header of our own; empty where there is none.
fn said<'a>(headers: &'a HeaderMap, name: &'static str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}
