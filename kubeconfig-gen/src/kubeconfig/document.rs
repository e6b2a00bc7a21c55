//! One kubeconfig file as a tree, so that nothing in it that is not ours gets lost.

use serde_json::{Map, Value, json};

use super::{EXEC_COMMAND, Entry};

/// The three lists that a kubeconfig is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `clusters`.
    Cluster,
    /// `users`.
    User,
    /// `contexts`.
    Context,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::User, Self::Context];

    const fn list(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::User => "users",
            Self::Context => "contexts",
        }
    }

    /// The word for one of them, which is also the field that holds its body.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::User => "user",
            Self::Context => "context",
        }
    }

    /// Fields that would win over ours, or contradict them.
    const fn rivals(self) -> &'static [&'static str] {
        match self {
            Self::Cluster => &[
                "certificate-authority",
                "certificate-authority-data",
                "insecure-skip-tls-verify",
            ],
            Self::User => &[
                "auth-provider",
                "client-certificate",
                "client-certificate-data",
                "client-key",
                "client-key-data",
                "exec",
                "password",
                "token",
                "tokenFile",
                "username",
            ],
            Self::Context => &[],
        }
    }
}

/// A kubeconfig's tree. Unknown fields, foreign entries and the order of both are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Document(Map<String, Value>);

/// What is no kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocument {
    /// Not YAML; says where.
    #[error("{0}")]
    Yaml(String),
    /// YAML, but not of a kubeconfig's form.
    #[error("{0}")]
    Form(&'static str),
    /// A field is there but of another form.
    #[error("`{0}` is not a list of named entries")]
    List(&'static str),
}

impl Default for Document {
    fn default() -> Self {
        Self(Map::from_iter([
            ("apiVersion".to_owned(), json!("v1")),
            ("kind".to_owned(), json!("Config")),
            ("clusters".to_owned(), json!([])),
            ("contexts".to_owned(), json!([])),
            ("current-context".to_owned(), json!("")),
            ("users".to_owned(), json!([])),
        ]))
    }
}

impl Document {
    /// Reads a file's text; an empty one is an empty kubeconfig, as it is to kubectl.
    ///
    /// # Errors
    /// See [`InvalidDocument`].
    pub fn parse(text: &str) -> Result<Self, InvalidDocument> {
        let tree: Option<Value> = serde_saphyr::from_str(text)
            .map_err(|e| InvalidDocument::Yaml(e.without_snippet().to_string()))?;
        let map = match tree {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(InvalidDocument::Form("it is YAML, but not a kubeconfig")),
        };
        if map.get("kind").is_some_and(|kind| kind != "Config") {
            return Err(InvalidDocument::Form("its `kind` is not Config"));
        }
        for kind in Kind::ALL {
            let fits = match map.get(kind.list()) {
                None | Some(Value::Null) => true,
                Some(Value::Array(entries)) => entries
                    .iter()
                    .all(|entry| entry.get("name").is_some_and(Value::is_string)),
                Some(_) => false,
            };
            if !fits {
                return Err(InvalidDocument::List(kind.list()));
            }
        }
        Ok(Self(map))
    }

    /// The file's text.
    ///
    /// # Errors
    /// A tree that YAML can't say; none that came from [`parse`](Self::parse).
    pub fn render(&self) -> Result<String, InvalidDocument> {
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        serde_saphyr::to_string_with_options(&self.0, options)
            .map_err(|e| InvalidDocument::Yaml(e.to_string()))
    }

    /// Whether there is an entry of that name.
    pub fn has(&self, kind: Kind, name: &str) -> bool {
        self.body(kind, name).is_some()
    }

    /// Whether an entry of that name was made by this program.
    pub fn is_ours(&self, kind: Kind, name: &str) -> bool {
        let Some(body) = self.body(kind, name) else {
            return false;
        };
        let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
        match kind {
            Kind::Cluster => {
                let path = url::Url::parse(text("server"))
                    .ok()
                    .map(|url| url.path().to_owned());
                path.as_deref()
                    .and_then(towline_proto::endpoint::split)
                    .is_some()
            }
            Kind::User => {
                let exec = body.get("exec");
                let command = exec
                    .and_then(|exec| exec.get("command"))
                    .and_then(Value::as_str);
                let stem = command.and_then(|command| std::path::Path::new(command).file_stem());
                let first = exec
                    .and_then(|exec| exec.pointer("/args/0"))
                    .and_then(Value::as_str);
                let is_exec =
                    stem.is_some_and(|stem| stem == EXEC_COMMAND) && first == Some("credential");
                // Nothing in a file's name says whose it is, but its cluster does.
                let is_file = body.get("tokenFile").is_some() && exec.is_none();
                is_exec || (is_file && self.is_ours(Kind::Cluster, name))
            }
            // Ours carry one name throughout.
            Kind::Context => text("cluster") == name && text("user") == name,
        }
    }

    /// Sets the fields of an entry that are ours; adds the entry where there is none.
    pub fn put(&mut self, kind: Kind, entry: &Entry) {
        let fields = match kind {
            Kind::Cluster => entry.cluster(),
            Kind::User => entry.user(),
            Kind::Context => entry.context(),
        };
        if let Some(body) = self.body_mut(kind, &entry.name) {
            for rival in kind
                .rivals()
                .iter()
                .filter(|rival| !fields.contains_key(**rival))
            {
                body.shift_remove(*rival);
            }
            for (field, value) in fields {
                // What a user added beside ours (an environment for the plugin) stays.
                match (body.get_mut(&field), value) {
                    (Some(Value::Object(old)), Value::Object(new)) => {
                        for (field, value) in new {
                            if !value.is_null() || !old.contains_key(&field) {
                                old.insert(field, value);
                            }
                        }
                    }
                    (_, value) => {
                        body.insert(field, value);
                    }
                }
            }
            return;
        }
        let list = self.0.entry(kind.list()).or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        if let Value::Array(entries) = list {
            let mut new = Map::from_iter([("name".to_owned(), entry.name.as_str().into())]);
            new.insert(kind.word().to_owned(), Value::Object(fields));
            // As kubectl writes it.
            new.sort_keys();
            entries.push(Value::Object(new));
        }
    }

    /// The current context, if there is one.
    pub fn current_context(&self) -> Option<&str> {
        self.0
            .get("current-context")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }

    /// Sets the current context.
    pub fn set_current_context(&mut self, name: &str) {
        self.0.insert("current-context".to_owned(), name.into());
    }

    fn entry(&self, kind: Kind, name: &str) -> Option<&Value> {
        let entries = self.0.get(kind.list())?.as_array()?;
        entries
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
    }

    fn body(&self, kind: Kind, name: &str) -> Option<&Value> {
        // An entry with nothing in it is there all the same.
        self.entry(kind, name)
            .map(|entry| entry.get(kind.word()).unwrap_or(&Value::Null))
    }

    fn body_mut(&mut self, kind: Kind, name: &str) -> Option<&mut Map<String, Value>> {
        let entries = self.0.get_mut(kind.list())?.as_array_mut()?;
        let entry = entries
            .iter_mut()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?
            .as_object_mut()?;
        let body = entry.entry(kind.word()).or_insert(Value::Null);
        if !body.is_object() {
            *body = json!({});
        }
        body.as_object_mut()
    }
}

#[cfg(test)]
pub(crate) mod tests;
