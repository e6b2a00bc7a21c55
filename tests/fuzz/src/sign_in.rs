//! The sign-in form: no redirect leaves this machine, and no markup comes out of what was sent in.

use http_body_util::BodyExt as _;
use towline_gateway::fuzzing;
use url::{Host, Url};

/// The data is the query of `/oauth2/authorize`.
pub(crate) fn form(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else {
        return;
    };
    let Some((asked, location, page)) = fuzzing::sign_in(query) else {
        return;
    };
    let is_here = |url: &Url| match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    let (before, after) = (Url::parse(&asked).unwrap(), Url::parse(&location).unwrap());
    for url in [&before, &after] {
        assert!(is_here(url) && url.scheme() == "http", "{url}");
        assert!(
            url.username().is_empty() && url.password().is_none() && url.fragment().is_none(),
            "{url}"
        );
    }
    assert_eq!((before.port(), before.path()), (after.port(), after.path()));
    assert!(
        !location.contains(char::is_control) && !location.contains(' '),
        "{location:?}"
    );
    let codes: Vec<String> = after
        .query_pairs()
        .filter(|(name, _)| name == "code")
        .map(|(_, code)| code.into_owned())
        .collect();
    assert_eq!(codes.last().map(String::as_str), Some("CODE"));

    let mut body = Box::pin(page.into_body().collect());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Ok(body)) = body.as_mut().poll(&mut context) else {
        panic!("a page has all of its body");
    };
    let html = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    assert_eq!(tags(&html), TAGS, "{html}");
}

/// The page's own tags, in their order, with or without a state.
const TAGS: &[&str] = &[
    "!doctype", "html", "meta", "meta", "title", "/title", "style", "/style", "main", "h1", "/h1",
    "form", "label", "/label", "input", "label", "/label", "input", "details", "summary",
    "/summary", "label", "/label", "input", "label", "/label", "input", "/details", "button",
    "/button", "/form", "/main", "/html",
];

/// Names of all tags but hidden fields', as a browser finds them.
fn tags(html: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let (tag, after) = rest.split_at(end);
        // Quotes come in pairs, so that a `>` within a value would show.
        assert!(tag.matches('"').count() % 2 == 0, "<{tag}>");
        if !tag.starts_with("input type=\"hidden\"") {
            tags.push(tag.split(' ').next().unwrap());
        }
        rest = after;
    }
    tags
}
