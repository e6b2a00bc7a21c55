//! Whom a request is made as, and how that is said to the API server.
//!
//! Threat: a name that reads as another once it stands in a header, and a caller who is somebody else than the
//! gateway said.
//! Decision: every name is checked where it is made, and an [`Impersonation`] has no fields to set from outside. It
//! becomes another's only with a [`Permitted`], which the cluster's own answer makes.
//! Consequence: what goes upstream names the caller, or whom the cluster lets the caller be; in that case the caller
//! stays known in [`ORIGINAL_USER`].

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::PathAndQuery};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;
use towline_proto::assertion::{Grant, Nested};

use super::{AllowedSystem, Denied, SYSTEM};
use crate::role::Rights;

/// Extra that holds the caller as JSON (`authentication.k8s.io/v1` `UserInfo`) where they are impersonating somebody
/// else: for the API server's audit log. A caller can't set it.
pub const ORIGINAL_USER: &str = "towline.dev/original-user";

/// What extras begin with that Towline alone sets.
const OWN: &str = "towline.dev/";

/// The API server takes an extra's key in any case.
fn is_own(key: &str) -> bool {
    key.to_lowercase().starts_with(OWN)
}

/// What the API server adds to everybody; it is not sent.
pub(super) const AUTHENTICATED: &str = "system:authenticated";

/// Where the control plane's own service accounts are.
const CONTROL_PLANE: &str = "kube-system";

/// Whom the gateway named, and for which request. Only [`Guard::admit`](super::Guard::admit) makes one.
#[derive(Debug, Clone)]
pub struct Impersonation {
    who: Who,
    principal: String,
    request_id: String,
    method: Method,
    path: PathAndQuery,
    upgrade: Option<HeaderValue>,
    headers: HeaderMap,
    left_out: usize,
    cluster: Arc<str>,
}

/// What of a request isn't about its caller.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request_id: String,
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) upgrade: Option<HeaderValue>,
    pub(super) headers: HeaderMap,
    pub(super) cluster: Arc<str>,
}

/// A user before the names are checked: the gateway's word, or in end-to-end mode the caller's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) user: String,
    pub(super) uid: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl Person {
    /// Whom the gateway names.
    pub(super) fn of(grant: &Grant) -> Self {
        Self {
            user: grant.user.clone(),
            uid: grant.uid.clone(),
            groups: grant.groups.clone(),
            extra: grant.extra.clone(),
        }
    }
}

/// A user as RBAC sees one, each name checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Who {
    user: Name,
    uid: Option<Name>,
    groups: Vec<Name>,
    extra: BTreeMap<String, (HeaderName, Vec<Name>)>,
}

/// A name, and the header's value that the API server reads it from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    text: String,
    value: HeaderValue,
}

/// Whom a caller asks to be instead, checked but for what the cluster says.
#[derive(Debug, Clone)]
pub struct Wanted {
    who: Who,
    nested: Nested,
}

impl Wanted {
    /// The names.
    pub const fn nested(&self) -> &Nested {
        &self.nested
    }

    /// The cluster lets the caller be them.
    pub(crate) const fn permit(self) -> Permitted {
        Permitted(self)
    }
}

/// Whom the cluster lets a caller be instead.
#[derive(Debug, Clone)]
pub struct Permitted(Wanted);

impl Impersonation {
    pub(super) fn new(
        person: &Person,
        principal: String,
        asked: Asked,
        allowed: &AllowedSystem,
    ) -> Result<Self, Denied> {
        allowed.check("user", &person.user)?;
        let groups = person.groups.iter().filter(|group| *group != AUTHENTICATED);
        let groups: Vec<&String> = groups.collect();
        if person.extra.contains_key(ORIGINAL_USER) {
            return Err(Denied::Reserved(ORIGINAL_USER.to_owned()));
        }
        Ok(Self {
            who: Who::new(
                &person.user,
                person.uid.as_ref(),
                &groups,
                &person.extra,
                allowed,
            )?,
            principal,
            request_id: asked.request_id,
            method: asked.method,
            path: asked.path,
            upgrade: asked.upgrade,
            headers: asked.headers,
            left_out: 0,
            cluster: asked.cluster,
        })
    }

    /// The user's name as RBAC sees it.
    pub fn user(&self) -> &str {
        &self.who.user.text
    }

    /// Whom the gateway authenticated.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The request's id, as the caller was told it.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The caller's method.
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query, byte by byte as the caller sent them.
    pub const fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// The protocol of an upgrade.
    pub const fn upgrade(&self) -> Option<&HeaderValue> {
        self.upgrade.as_ref()
    }

    /// The membership's name.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// How many of the caller's groups aren't named to the API server.
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    /// The first extra that the agent may not set.
    pub(crate) fn extra_beyond(&self, rights: &Rights) -> Option<(&str, &str)> {
        let extra = self.who.extra.iter();
        extra
            .flat_map(|(key, (_, values))| values.iter().map(move |value| (key, value)))
            .find(|(key, value)| !rights.extra(key, &value.text))
            .map(|(key, value)| (key.as_str(), value.text.as_str()))
    }

    /// Keeps the groups and the UID that the agent may name: the API server refuses the whole request for one that
    /// it may not. That can only take rights away. Extras stay: they can also be what limits a caller.
    #[must_use]
    pub fn within(mut self, rights: &Rights) -> Self {
        let before = self.who.groups.len();
        self.who.groups.retain(|group| rights.group(&group.text));
        self.left_out = before - self.who.groups.len();
        self.who.uid = self.who.uid.filter(|uid| rights.uid(&uid.text));
        self
    }

    /// The same caller, asking `path` of the API server for the agent to know the answer.
    pub(crate) fn asking(&self, path: &'static str) -> Self {
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json.clone());
        headers.insert(header::ACCEPT, json);
        Self {
            method: Method::POST,
            path: PathAndQuery::from_static(path),
            upgrade: None,
            headers,
            ..self.clone()
        }
    }

    /// The request in the name of whom the caller may be; the caller stays known.
    #[must_use]
    pub fn instead(self, Permitted(wanted): Permitted) -> Self {
        let mut who = wanted.who;
        let original = Name {
            value: original_user(&self.who),
            text: String::new(),
        };
        let name =
            const { HeaderName::from_static("impersonate-extra-towline.dev%2foriginal-user") };
        who.extra
            .insert(ORIGINAL_USER.to_owned(), (name, vec![original]));
        Self { who, ..self }
    }

    /// The caller in words that no other caller has.
    pub(crate) fn identity(&self) -> String {
        user_info(&self.who)
    }

    /// The caller's headers with the impersonation's: all that goes upstream but for the agent's own.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(USER, self.who.user.value.clone());
        if let Some(uid) = &self.who.uid {
            headers.insert(UID, uid.value.clone());
        }
        for group in &self.who.groups {
            headers.append(GROUP, group.value.clone());
        }
        for (name, values) in self.who.extra.values() {
            for value in values {
                headers.append(name, value.value.clone());
            }
        }
        headers
    }
}

impl Wanted {
    pub(super) fn new(nested: Nested, allowed: &AllowedSystem) -> Result<Self, Denied> {
        if !is_service_account(&nested.user) {
            allowed.check("user", &nested.user)?;
        }
        // What tells an auditor who is behind a request: whoever asks to be somebody else doesn't write it.
        if let Some(key) = nested.extra.keys().find(|key| is_own(key)) {
            return Err(Denied::Reserved(key.chars().take(200).collect()));
        }
        let groups: Vec<&String> = nested.groups.iter().collect();
        let who = Who::new(
            &nested.user,
            nested.uid.as_ref(),
            &groups,
            &nested.extra,
            allowed,
        )?;
        Ok(Self { who, nested })
    }
}

impl Who {
    fn new(
        user: &str,
        uid: Option<&String>,
        groups: &[&String],
        extra: &BTreeMap<String, Vec<String>>,
        allowed: &AllowedSystem,
    ) -> Result<Self, Denied> {
        let mut named = Vec::with_capacity(groups.len());
        for group in groups {
            allowed.check("group", group)?;
            named.push(sayable("group", group)?);
        }
        let mut set: BTreeMap<String, (HeaderName, Vec<Name>)> = BTreeMap::new();
        for (key, values) in extra {
            let values = values.iter().map(|value| sayable("extra", value));
            let values = values.collect::<Result<Vec<Name>, Denied>>()?;
            // The API server knows no upper case here, so two keys may be one.
            set.entry(key.to_lowercase())
                .or_insert((extra_name(key)?, Vec::new()))
                .1
                .extend(values);
        }
        Ok(Self {
            user: sayable("user", user)?,
            uid: uid.map(|uid| sayable("uid", uid)).transpose()?,
            groups: named,
            extra: set,
        })
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`, as the API server splits it, outside the control plane's namespace.
fn is_service_account(user: &str) -> bool {
    service_account(user).is_some_and(|(namespace, _)| namespace != CONTROL_PLANE)
}

/// Namespace and name of a service account's user.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    let rest = user.strip_prefix(SYSTEM)?.strip_prefix("serviceaccount:")?;
    let (namespace, name) = rest.split_once(':')?;
    let label = |text: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    (label(namespace) && name.split('.').all(label)).then_some((namespace, name))
}

fn original_user(who: &Who) -> HeaderValue {
    // JSON has no control characters, and it was UTF-8.
    HeaderValue::from_bytes(user_info(who).as_bytes())
        .unwrap_or_else(|_| HeaderValue::from_static("{}"))
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[derive(Serialize)]
struct UserInfo<'a> {
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<&'a str, Vec<&'a str>>,
}

fn user_info(who: &Who) -> String {
    let texts = |names| {
        <[Name]>::iter(names)
            .map(|name| name.text.as_str())
            .collect()
    };
    let extra = who.extra.iter();
    let info = UserInfo {
        username: &who.user.text,
        uid: who.uid.as_ref().map(|uid| uid.text.as_str()),
        groups: texts(&who.groups),
        extra: extra
            .map(|(key, (_, values))| (key.as_str(), texts(values)))
            .collect(),
    };
    // Strings and lists of strings are always JSON.
    serde_json::to_string(&info).unwrap_or_default()
}

/// A name as a header's value, if the API server will read the very same name out of it.
fn sayable(what: &'static str, name: &str) -> Result<Name, Denied> {
    let unsayable = || Denied::Unsayable {
        what,
        name: name.chars().take(200).collect(),
    };
    // Servers trim what stands around a value; `" admin"` must not become `admin`. An extra may be empty.
    if (name.is_empty() && what != "extra")
        || name.trim() != name
        || name.chars().any(char::is_control)
    {
        return Err(unsayable());
    }
    let value = HeaderValue::from_bytes(name.as_bytes()).map_err(|_| unsayable())?;
    Ok(Name {
        text: name.to_owned(),
        value,
    })
}

fn extra_name(key: &str) -> Result<HeaderName, Denied> {
    let unsayable = || Denied::Unsayable {
        what: "extra",
        name: key.chars().take(200).collect(),
    };
    if key.is_empty() {
        return Err(unsayable());
    }
    let encoded = percent_encode(key.to_lowercase().as_bytes(), EXTRA_KEY).to_string();
    HeaderName::from_bytes(format!("{EXTRA}{encoded}").as_bytes()).map_err(|_| unsayable())
}

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";

/// What may stand unencoded in an extra's key: the characters of a header's name, but for `%`.
const EXTRA_KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');
