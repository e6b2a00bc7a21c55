//! The public URL of a membership: the gateway parses it, the command line prints it.

use crate::names::Membership;

/// What stands before the resource name in the path.
pub const PREFIX: &str = "/v1/";

/// Path of the agent's door on the public port.
pub const AGENT_CONNECT: &str = "/agent/v1/connect";

/// The path under which a membership's Kubernetes API stands, without a slash at the end.
pub fn path(membership: &Membership) -> String {
    format!("{PREFIX}{membership}")
}

/// Splits a request's path (with its query) into the membership and the Kubernetes path that follows.
///
/// The prefix is never percent-decoded and what follows is passed on byte by byte; nothing after the
/// prefix means `/`. `None` where the path is not a membership's.
pub fn split(path_and_query: &str) -> Option<(Membership, &str)> {
    let rest = path_and_query.strip_prefix(PREFIX)?;
    // The sixth slash, or a `?` before it, ends the resource name.
    let end = rest
        .char_indices()
        .filter(|(_, c)| *c == '/')
        .nth(5)
        .map(|(at, _)| at)
        .into_iter()
        .chain(rest.find('?'))
        .min()
        .unwrap_or(rest.len());
    let (name, kubernetes) = rest.split_at_checked(end)?;
    Some((
        name.parse().ok()?,
        if kubernetes.is_empty() {
            "/"
        } else {
            kubernetes
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_leaves_the_rest_as_it_is() {
        let base = "/v1/projects/p/locations/global/memberships/m";
        for (rest, kubernetes) in [
            ("", "/"),
            ("/", "/"),
            ("/api/v1/pods?watch=1", "/api/v1/pods?watch=1"),
            ("/api/v1/%2e%2e/x%2Fy//z", "/api/v1/%2e%2e/x%2Fy//z"),
            ("?x=/a/b/c", "?x=/a/b/c"),
        ] {
            let url = format!("{base}{rest}");
            let (membership, path) = split(&url).unwrap();
            assert_eq!(membership.id.as_str(), "m");
            assert_eq!(path, kubernetes);
        }
    }

    #[test]
    fn anything_else_is_nobodys() {
        for bad in [
            "/",
            "/v1/",
            "/api/v1/pods",
            "/v1/projects/p/locations/global/memberships/",
            "/v1/projects/p/locations/global/memberships/%6d/api",
            "/v1//projects/p/locations/global/memberships/m",
            "/V1/projects/p/locations/global/memberships/m",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
