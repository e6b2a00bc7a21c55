//! The rules of kube-apiserver for an `AuthenticationConfiguration`, and Towline's own.
//!
//! Kubernetes' are those of `k8s.io/apiserver/pkg/apis/apiserver/validation` 1.36. Towline's: no
//! two issuers may reach the same RBAC subject, so all but one put a prefix before every name, and
//! that prefix must be plain to see, also in an expression.

use std::collections::BTreeSet;

use url::Url;

use super::{
    AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, FieldError, Invalid,
    IssuerFields, JwtAuthenticator, PrefixedClaimOrExpression, Rules, UserValidationRule,
};
use crate::expression::{Expression, Type};

/// How many issuers kube-apiserver takes.
const MAX_ISSUERS: usize = 64;

type Errors = Vec<FieldError>;

impl AuthenticationConfiguration {
    /// Checks all rules.
    ///
    /// # Errors
    /// [`Invalid`] with every field that is wrong.
    pub fn validate(&self, rules: &Rules) -> Result<(), Invalid> {
        let mut errors = Errors::new();
        if self.jwt.len() > MAX_ISSUERS {
            return Err(Invalid::one(
                "jwt",
                format!("{} issuers are more than {MAX_ISSUERS}", self.jwt.len()),
            ));
        }
        let (mut urls, mut discovery_urls) = (BTreeSet::new(), BTreeSet::new());
        for (index, jwt) in self.jwt.iter().enumerate() {
            let path = format!("jwt[{index}]");
            validate_jwt(&path, jwt, rules, &mut errors);
            let issuer = &jwt.issuer;
            if !urls.insert(&issuer.url) {
                duplicate(&format!("{path}.issuer.url"), &issuer.url, &mut errors);
            }
            if let Some(url) = &issuer.discovery_url
                && !discovery_urls.insert(url)
            {
                duplicate(&format!("{path}.issuer.discoveryURL"), url, &mut errors);
            }
        }
        if rules.separate_issuers {
            self.validate_prefixes(&mut errors);
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Invalid(errors))
        }
    }

    /// At most one issuer without a prefix, and no prefix that begins with another's.
    fn validate_prefixes(&self, errors: &mut Errors) {
        for name in ["username", "groups"] {
            let mut seen: Vec<(usize, String)> = Vec::new();
            for (index, jwt) in self.jwt.iter().enumerate() {
                let Some(prefix) = prefix_of(jwt, name) else {
                    continue;
                };
                let path = format!("jwt[{index}].claimMappings.{name}");
                for (other, taken) in &seen {
                    if prefix.is_empty() && taken.is_empty() {
                        errors.push(FieldError::new(
                            &path,
                            format!(
                                "a prefix is required, because jwt[{other}] has none: two issuers \
                                 could give one name to different people; set prefix, or begin \
                                 the expression with a string"
                            ),
                        ));
                    } else if !prefix.is_empty()
                        && !taken.is_empty()
                        && (prefix.starts_with(taken.as_str()) || taken.starts_with(&prefix))
                    {
                        errors.push(FieldError::new(
                            &path,
                            format!("prefix {prefix:?} overlaps {taken:?} of jwt[{other}]"),
                        ));
                    }
                }
                seen.push((index, prefix));
            }
        }
    }
}

/// What every name of an issuer begins with; nothing when it maps none.
pub(crate) fn prefix_of(jwt: &JwtAuthenticator, name: &str) -> Option<String> {
    let mapping = match name {
        "username" => &jwt.claim_mappings.username,
        _ => &jwt.claim_mappings.groups,
    };
    if !mapping.expression.is_empty() {
        let expression = compile(&mapping.expression, "claims", None).ok()?;
        return Some(expression.literal_prefix().unwrap_or_default().to_owned());
    }
    if mapping.claim.is_empty() {
        return None;
    }
    Some(mapping.prefix.clone().unwrap_or_default())
}

fn validate_jwt(path: &str, jwt: &JwtAuthenticator, rules: &Rules, errors: &mut Errors) {
    validate_issuer(&format!("{path}.issuer"), &jwt.issuer, rules, errors);
    let verified = validate_claim_rules(
        &format!("{path}.claimValidationRules"),
        &jwt.claim_validation_rules,
        errors,
    );
    validate_mappings(
        &format!("{path}.claimMappings"),
        &jwt.claim_mappings,
        verified,
        errors,
    );
    validate_user_rules(
        &format!("{path}.userValidationRules"),
        &jwt.user_validation_rules,
        errors,
    );
}

fn validate_issuer(path: &str, issuer: &IssuerFields, rules: &Rules, errors: &mut Errors) {
    let url = format!("{path}.url");
    if rules.disallowed_issuers.contains(&issuer.url) {
        refuse(&url, "is the gateway's own issuer", errors);
    }
    validate_url(&url, &issuer.url, rules.allow_http, errors);
    if let Some(discovery_url) = &issuer.discovery_url {
        let path = format!("{path}.discoveryURL");
        if discovery_url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            refuse(&path, "must be different from url", errors);
        }
        validate_url(&path, discovery_url, rules.allow_http, errors);
    }
    validate_audiences(path, issuer, errors);
    if let Some(pem) = &issuer.certificate_authority
        && let Err(reason) = crate::issuer::read_certificates(pem)
    {
        refuse(&format!("{path}.certificateAuthority"), reason, errors);
    }
}

/// An `https` URL without user, query and fragment.
pub(crate) fn validate_url(path: &str, url: &str, allow_http: bool, errors: &mut Errors) {
    if url.is_empty() {
        return refuse(path, "is required", errors);
    }
    let parsed = match Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(path, format!("{url:?} is not a URL: {error}"), errors),
    };
    if parsed.scheme() != "https" && !(allow_http && parsed.scheme() == "http") {
        refuse(path, format!("{url:?}: URL scheme must be https"), errors);
    }
    let authority = url.split("://").nth(1).unwrap_or_default();
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        refuse(path, "URL must not contain a username or password", errors);
    }
    if parsed.query().is_some_and(|query| !query.is_empty()) {
        refuse(
            path,
            format!("{url:?}: URL must not contain a query"),
            errors,
        );
    }
    if parsed.fragment().is_some_and(|part| !part.is_empty()) {
        refuse(
            path,
            format!("{url:?}: URL must not contain a fragment"),
            errors,
        );
    }
}

fn validate_audiences(path: &str, issuer: &IssuerFields, errors: &mut Errors) {
    let audiences = format!("{path}.audiences");
    if issuer.audiences.is_empty() {
        return refuse(&audiences, "at least one is required", errors);
    }
    let mut seen = BTreeSet::new();
    for (index, audience) in issuer.audiences.iter().enumerate() {
        let path = format!("{audiences}[{index}]");
        if audience.is_empty() {
            refuse(&path, "is required", errors);
        }
        if !seen.insert(audience) {
            duplicate(&path, audience, errors);
        }
    }
    let policy = issuer.audience_match_policy.as_str();
    let fits = policy == "MatchAny" || (policy.is_empty() && issuer.audiences.len() == 1);
    if !fits {
        let path = format!("{path}.audienceMatchPolicy");
        let allowed = if issuer.audiences.len() == 1 {
            "must be empty or MatchAny for a single audience"
        } else {
            "must be MatchAny for multiple audiences"
        };
        refuse(&path, format!("{policy:?} {allowed}"), errors);
    }
}

/// Says whether a rule looks at `claims.email_verified`.
fn validate_claim_rules(path: &str, rules: &[ClaimValidationRule], errors: &mut Errors) -> bool {
    let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
    let mut verified = false;
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => refuse(&path, "claim and expression can't both be set", errors),
            (true, true) => refuse(&path, "claim or expression is required", errors),
            (false, true) => {
                if !rule.message.is_empty() {
                    let path = format!("{path}.message");
                    refuse(&path, "may not be specified when claim is set", errors);
                }
                if !claims.insert(&rule.claim) {
                    duplicate(&format!("{path}.claim"), &rule.claim, errors);
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let path = format!("{path}.requiredValue");
                    refuse(&path, "may not be specified when expression is set", errors);
                }
                let path = format!("{path}.expression");
                if !expressions.insert(&rule.expression) {
                    duplicate(&path, &rule.expression, errors);
                    continue;
                }
                let compiled =
                    checked(&path, &rule.expression, "claims", Some(&Type::Bool), errors);
                verified |= compiled.is_some_and(|rule| rule.selects("claims", "email_verified"));
            }
        }
    }
    verified
}

fn validate_mappings(path: &str, mappings: &ClaimMappings, verified: bool, errors: &mut Errors) {
    let username = format!("{path}.username");
    let mut verified = verified;
    let compiled = validate_prefixed(&username, &mappings.username, true, errors);
    let uses_email = compiled.is_some_and(|username| {
        verified |= username.selects("claims", "email_verified");
        username.selects("claims", "email")
    });
    validate_prefixed(&format!("{path}.groups"), &mappings.groups, false, errors);

    let uid = format!("{path}.uid");
    match (
        mappings.uid.claim.is_empty(),
        mappings.uid.expression.as_str(),
    ) {
        (_, "") => {}
        (false, _) => refuse(&uid, "claim and expression can't both be set", errors),
        (true, expression) => {
            checked(
                &format!("{uid}.expression"),
                expression,
                "claims",
                None,
                errors,
            );
        }
    }

    let mut keys = BTreeSet::new();
    for (index, extra) in mappings.extra.iter().enumerate() {
        let path = format!("{path}.extra[{index}]");
        let key = format!("{path}.key");
        validate_extra_key(&key, &extra.key, errors);
        if !keys.insert(&extra.key) {
            duplicate(&key, &extra.key, errors);
            continue;
        }
        let value = format!("{path}.valueExpression");
        if extra.value_expression.is_empty() {
            refuse(&value, "is required", errors);
            continue;
        }
        let compiled = checked(&value, &extra.value_expression, "claims", None, errors);
        verified |= compiled.is_some_and(|extra| extra.selects("claims", "email_verified"));
    }

    if uses_email && !verified {
        refuse(
            &format!("{username}.expression"),
            "claims.email_verified must be used in claimMappings.username.expression or \
             claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when \
             claims.email is used in claimMappings.username.expression",
            errors,
        );
    }
}

fn validate_prefixed(
    path: &str,
    mapping: &PrefixedClaimOrExpression,
    required: bool,
    errors: &mut Errors,
) -> Option<Expression> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => refuse(path, "claim and expression can't both be set", errors),
        (true, true) if required => refuse(path, "claim or expression is required", errors),
        (true, true) => {}
        (true, false) => {
            if mapping.prefix.is_some() {
                let path = format!("{path}.prefix");
                refuse(&path, "may not be specified when expression is set", errors);
            }
            let path = format!("{path}.expression");
            return checked(&path, &mapping.expression, "claims", None, errors);
        }
        (false, true) => {
            if mapping.prefix.is_none() {
                refuse(
                    &format!("{path}.prefix"),
                    "is required when claim is set; it can be set to an empty string",
                    errors,
                );
            }
        }
    }
    None
}

/// A domain-prefixed path in lower case that isn't Kubernetes' own.
fn validate_extra_key(path: &str, key: &str, errors: &mut Errors) {
    let (domain, rest) = key.split_once('/').unwrap_or((key, ""));
    if domain.is_empty() || rest.is_empty() {
        return refuse(
            path,
            format!("{key:?} must be a domain-prefixed path (such as \"acme.io/foo\")"),
            errors,
        );
    }
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() > 253 || !domain.split('.').all(label) {
        refuse(
            path,
            format!("{domain:?} is not a subdomain (RFC 1123)"),
            errors,
        );
    }
    if !is_http_path(rest) {
        refuse(path, format!("{rest:?} is not a path (RFC 3986)"), errors);
    }
    if key.to_lowercase() != key {
        refuse(path, format!("{key:?} must be lowercase"), errors);
    }
    let reserved = ["kubernetes.io", "k8s.io"].iter().any(|own| {
        domain == *own
            || domain
                .strip_suffix(own)
                .is_some_and(|sub| sub.ends_with('.'))
    });
    if reserved {
        refuse(
            path,
            format!("{key:?}: k8s.io, kubernetes.io and their subdomains are reserved"),
            errors,
        );
    }
}

/// Path characters as Kubernetes has them.
fn is_http_path(path: &str) -> bool {
    path.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte))
}

fn validate_user_rules(path: &str, rules: &[UserValidationRule], errors: &mut Errors) {
    let mut expressions = BTreeSet::new();
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{index}].expression");
        if rule.expression.is_empty() {
            refuse(&path, "is required", errors);
        } else if !expressions.insert(&rule.expression) {
            duplicate(&path, &rule.expression, errors);
        } else {
            checked(&path, &rule.expression, "user", Some(&Type::Bool), errors);
        }
    }
}

fn checked(
    path: &str,
    source: &str,
    variable: &'static str,
    wanted: Option<&Type>,
    errors: &mut Errors,
) -> Option<Expression> {
    compile(source, variable, wanted)
        .map_err(|error| refuse(path, format!("{source:?}: {error}"), errors))
        .ok()
}

/// Compiles an expression over `claims` or `user`.
pub(crate) fn compile(
    source: &str,
    variable: &'static str,
    wanted: Option<&Type>,
) -> Result<Expression, crate::expression::CompileError> {
    let kind = if variable == "user" {
        Type::user()
    } else {
        Type::map(Type::Any)
    };
    Expression::compile(source, &[(variable, kind)], wanted)
}

fn refuse(path: &str, reason: impl Into<String>, errors: &mut Errors) {
    errors.push(FieldError::new(path, reason));
}

fn duplicate(path: &str, value: &str, errors: &mut Errors) {
    refuse(path, format!("{value:?} is there twice"), errors);
}
