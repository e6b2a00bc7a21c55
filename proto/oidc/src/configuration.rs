//! Kubernetes' `AuthenticationConfiguration`, as read from a file.
//!
//! The same file may be given to kube-apiserver (`--authentication-config`) and to a gateway, so
//! the same versions, fields and rules hold. A field that nobody knows is refused by its path: a
//! misspelt `claimValidationRule` that is silently dropped would let everybody in.

mod fields;
mod validate;

use std::fmt;

use serde_json::Value;

use fields::Fields;
pub(crate) use validate::{compile, prefix_of, validate_url};

/// The largest configuration that is read, in bytes.
const MAX_CONFIGURATION: usize = 1024 * 1024;

/// The API versions that kube-apiserver 1.36 takes.
const VERSIONS: [&str; 3] = [
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
];

/// A parsed and validated `AuthenticationConfiguration`
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthenticationConfiguration {
    /// One entry for every issuer.
    pub jwt: Vec<JwtAuthenticator>,
}

/// One issuer and how its tokens are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JwtAuthenticator {
    /// Who signs, for whom, and where the keys are.
    pub issuer: IssuerFields,
    /// What must hold for the claims.
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    /// How claims become a user.
    pub claim_mappings: ClaimMappings,
    /// What must hold for the user.
    pub user_validation_rules: Vec<UserValidationRule>,
}

/// `issuer` of a [`JwtAuthenticator`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerFields {
    /// `url`: the `iss` of the tokens.
    pub url: String,
    /// `discoveryURL`: where the discovery document is when not below `url`.
    pub discovery_url: Option<String>,
    /// `certificateAuthority`: PEM certificates to trust instead of the system's.
    pub certificate_authority: Option<String>,
    /// `audiences`: one of them must be in `aud`.
    pub audiences: Vec<String>,
    /// `audienceMatchPolicy`: `MatchAny` or empty.
    pub audience_match_policy: String,
}

/// One entry of `claimValidationRules`; empty strings are absent fields, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimValidationRule {
    /// A claim that must be there.
    pub claim: String,
    /// The value that it must have.
    pub required_value: String,
    /// A CEL expression over `claims` that must be true.
    pub expression: String,
    /// What is said when it isn't.
    pub message: String,
}

/// `claimMappings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimMappings {
    /// The user name.
    pub username: PrefixedClaimOrExpression,
    /// The groups.
    pub groups: PrefixedClaimOrExpression,
    /// The user's uid.
    pub uid: ClaimOrExpression,
    /// Extra attributes.
    pub extra: Vec<ExtraMapping>,
}

/// `username` and `groups` of [`ClaimMappings`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixedClaimOrExpression {
    /// The claim to take.
    pub claim: String,
    /// What is put before it; required with `claim`, may be empty.
    pub prefix: Option<String>,
    /// A CEL expression over `claims` instead.
    pub expression: String,
}

/// `uid` of [`ClaimMappings`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimOrExpression {
    /// The claim to take.
    pub claim: String,
    /// A CEL expression over `claims` instead.
    pub expression: String,
}

/// One entry of `extra` of [`ClaimMappings`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraMapping {
    /// A domain-prefixed path in lower case, such as `example.org/team`.
    pub key: String,
    /// A CEL expression over `claims`: a string or a list of strings.
    pub value_expression: String,
}

/// One entry of `userValidationRules`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserValidationRule {
    /// A CEL expression over `user` that must be true.
    pub expression: String,
    /// What is said when it isn't.
    pub message: String,
}

/// What holds beyond Kubernetes' own rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// At most one issuer may leave names without a prefix, and no issuer's names may begin with
    /// another's prefix.
    pub separate_issuers: bool,
    /// Names that begin with `system:`, `serviceAccount:`, `principal:` or `principalSet:`, and
    /// names with control characters, are no sign-in.
    pub reserved_names: bool,
    /// `http://` issuers are taken: for tests.
    pub allow_http: bool,
    /// Issuer URLs that somebody else's tokens have: the gateway's own.
    pub disallowed_issuers: Vec<String>,
}

impl Rules {
    /// What a gateway or an agent wants.
    #[must_use]
    pub const fn towline() -> Self {
        Self {
            separate_issuers: true,
            reserved_names: true,
            allow_http: false,
            disallowed_issuers: Vec::new(),
        }
    }

    /// What kube-apiserver does, to be compared with it.
    #[must_use]
    pub const fn kubernetes() -> Self {
        Self {
            separate_issuers: false,
            reserved_names: false,
            allow_http: false,
            disallowed_issuers: Vec::new(),
        }
    }
}

/// Why a configuration is refused: every field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(pub Vec<FieldError>);

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Its path, such as `jwt[0].issuer.url`.
    pub field: String,
    /// The value where it helps, and what would be right.
    pub reason: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl Invalid {
    pub(crate) fn one(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self(vec![FieldError::new(field, reason)])
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl AuthenticationConfiguration {
    /// Reads a configuration in YAML or JSON and validates it.
    ///
    /// # Errors
    /// [`Invalid`] with every field that kube-apiserver would refuse, that `rules` refuse, or that
    /// has no meaning here (`anonymous`, `egressSelectorType`).
    pub fn parse(text: &str, rules: &Rules) -> Result<Self, Invalid> {
        let configuration = Self::read(text)?;
        configuration.validate(rules)?;
        Ok(configuration)
    }

    /// The fields only: names and types, no rules.
    fn read(text: &str) -> Result<Self, Invalid> {
        if text.len() > MAX_CONFIGURATION {
            return Err(Invalid::one(
                "(document)",
                format!(
                    "{} bytes are more than {MAX_CONFIGURATION} allowed",
                    text.len()
                ),
            ));
        }
        let document: Value = serde_saphyr::from_str(text).map_err(|error| {
            Invalid::one("(document)", format!("neither YAML nor JSON: {error}"))
        })?;
        let mut errors = Vec::new();
        let configuration = Self::from_fields(Fields::root(document, &mut errors));
        if errors.is_empty() {
            Ok(configuration)
        } else {
            Err(Invalid(errors))
        }
    }

    fn from_fields(mut fields: Fields<'_>) -> Self {
        let version = fields.text("apiVersion");
        if !VERSIONS.contains(&version.as_str()) {
            fields.refuse(
                "apiVersion",
                format!("{version:?} is not one of {}", VERSIONS.join(", ")),
            );
        }
        let kind = fields.text("kind");
        if kind != "AuthenticationConfiguration" {
            fields.refuse(
                "kind",
                format!("{kind:?} is not AuthenticationConfiguration"),
            );
        }
        if fields.take("anonymous").is_some() {
            fields.refuse(
                "anonymous",
                "nobody is let in without a token; remove this field",
            );
        }
        let jwt = fields.list("jwt", JwtAuthenticator::from_fields);
        fields.finish();
        Self { jwt }
    }
}

impl JwtAuthenticator {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            issuer: fields.object("issuer", IssuerFields::from_fields),
            claim_validation_rules: fields
                .list("claimValidationRules", ClaimValidationRule::from_fields),
            claim_mappings: fields.object("claimMappings", ClaimMappings::from_fields),
            user_validation_rules: fields
                .list("userValidationRules", UserValidationRule::from_fields),
        };
        fields.finish();
        this
    }
}

impl IssuerFields {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        if !fields.text("egressSelectorType").is_empty() {
            fields.refuse(
                "egressSelectorType",
                "there is no egress selector here; remove this field",
            );
        }
        let this = Self {
            url: fields.text("url"),
            discovery_url: fields
                .optional_text("discoveryURL")
                .filter(|url| !url.is_empty()),
            certificate_authority: fields
                .optional_text("certificateAuthority")
                .filter(|pem| !pem.is_empty()),
            audiences: fields.texts("audiences"),
            audience_match_policy: fields.text("audienceMatchPolicy"),
        };
        fields.finish();
        this
    }
}

impl ClaimValidationRule {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            claim: fields.text("claim"),
            required_value: fields.text("requiredValue"),
            expression: fields.text("expression"),
            message: fields.text("message"),
        };
        fields.finish();
        this
    }
}

impl ClaimMappings {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            username: fields.object("username", PrefixedClaimOrExpression::from_fields),
            groups: fields.object("groups", PrefixedClaimOrExpression::from_fields),
            uid: fields.object("uid", ClaimOrExpression::from_fields),
            extra: fields.list("extra", ExtraMapping::from_fields),
        };
        fields.finish();
        this
    }
}

impl PrefixedClaimOrExpression {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            claim: fields.text("claim"),
            prefix: fields.optional_text("prefix"),
            expression: fields.text("expression"),
        };
        fields.finish();
        this
    }
}

impl ClaimOrExpression {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            claim: fields.text("claim"),
            expression: fields.text("expression"),
        };
        fields.finish();
        this
    }
}

impl ExtraMapping {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            key: fields.text("key"),
            value_expression: fields.text("valueExpression"),
        };
        fields.finish();
        this
    }
}

impl UserValidationRule {
    fn from_fields(mut fields: Fields<'_>) -> Self {
        let this = Self {
            expression: fields.text("expression"),
            message: fields.text("message"),
        };
        fields.finish();
        this
    }
}
