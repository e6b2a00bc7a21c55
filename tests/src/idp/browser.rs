//! As much of a browser as a sign-in takes: redirects, cookies, and forms that are filled in and sent.

use std::path::{Path, PathBuf};

use crate::{command::Cmd, place};

/// A browser with cookies of its own.
#[derive(Debug)]
pub struct Browser {
    cookies: PathBuf,
    authority: PathBuf,
}

/// Where it ended up.
#[derive(Debug, Clone)]
pub struct Page {
    /// The address.
    pub url: String,
    /// HTTP status.
    pub status: u16,
    /// Where the answer sends the browser to.
    pub location: Option<String>,
    /// What is there.
    pub body: String,
}

impl Browser {
    /// One that believes certificates of this authority, beside plain HTTP on loopback.
    pub fn new(authority: &Path) -> Self {
        Self {
            cookies: place::directory("browser").join("cookies"),
            authority: authority.to_owned(),
        }
    }

    /// Opens an address and does what the pages ask, until one asks for nothing.
    ///
    /// # Panics
    /// It never ends.
    #[track_caller]
    pub fn sign_in(&self, url: &str, name: &str, password: &str) -> Page {
        let mut page = self.open(url);
        for _ in 0..20 {
            page = if let Some(to) = page.location.clone() {
                self.open(&resolve(&page.url, &to))
            } else if let Some(form) = Form::in_page(&page.body) {
                form.send(self, &page.url, name, password)
            } else {
                return page;
            };
        }
        panic!("the sign-in has no end; last: {page:?}")
    }

    /// The same, but stops before it goes to an address that begins with `before`, and gives that.
    ///
    /// # Panics
    /// It never gets there.
    #[track_caller]
    pub fn redirect(&self, url: &str, name: &str, password: &str, before: &str) -> String {
        let mut page = self.open(url);
        for _ in 0..20 {
            page = if let Some(to) = page.location.clone() {
                if to.starts_with(before) {
                    return to;
                }
                self.open(&resolve(&page.url, &to))
            } else if let Some(form) = Form::in_page(&page.body) {
                form.send(self, &page.url, name, password)
            } else {
                break;
            };
        }
        panic!("the sign-in did not lead to {before}; last: {page:?}")
    }

    /// One request.
    #[track_caller]
    pub fn open(&self, url: &str) -> Page {
        self.ask(url, None)
    }

    #[track_caller]
    fn ask(&self, url: &str, form: Option<String>) -> Page {
        let mut command = Cmd::new("curl")
            .words("--silent --show-error --max-time 20 --include --http1.1 --cacert")
            .arg(&self.authority)
            .arg("--cookie")
            .arg(&self.cookies)
            .arg("--cookie-jar")
            .arg(&self.cookies)
            .arg(url);
        if let Some(form) = form {
            command = command.args(["--data-binary", "@-"]).input(form);
        }
        let said = command.ok();
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let location = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location")
                .then(|| value.trim().to_owned())
        });
        Page {
            url: url.to_owned(),
            status: status.and_then(|code| code.parse().ok()).unwrap_or(0),
            location,
            body: body.to_owned(),
        }
    }
}

/// The first form of a page.
#[derive(Debug)]
struct Form {
    action: String,
    fields: Vec<(String, String)>,
}

impl Form {
    fn in_page(page: &str) -> Option<Self> {
        let start = page.find("<form")?;
        let text = &page[start..];
        let text = &text[..text.find("</form>").unwrap_or(text.len())];
        let mut fields = Vec::new();
        for tag in ["<input", "<button"] {
            for (at, _) in text.match_indices(tag) {
                let rest = &text[at..];
                let rest = &rest[..rest.find('>').unwrap_or(rest.len())];
                let Some(name) = attribute(rest, "name") else {
                    continue;
                };
                // Of two buttons, the one that says no is not pressed.
                if name != "cancel" && name != "abort" {
                    fields.push((name, attribute(rest, "value").unwrap_or_default()));
                }
            }
        }
        let head = &text[..text.find('>').unwrap_or(text.len())];
        Some(Self {
            action: attribute(head, "action").unwrap_or_default(),
            fields,
        })
    }

    #[track_caller]
    fn send(mut self, browser: &Browser, page: &str, name: &str, password: &str) -> Page {
        for (field, value) in &mut self.fields {
            match field.as_str() {
                "username" | "login" if value != "Sign In" => name.clone_into(value),
                "password" => password.clone_into(value),
                _ => {}
            }
        }
        let body: Vec<String> = self
            .fields
            .iter()
            .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
            .collect();
        browser.ask(&resolve(page, &self.action), Some(body.join("&")))
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let start = tag.find(&format!(" {name}="))? + name.len() + 2;
    let rest = &tag[start..];
    let quote = rest.chars().next()?;
    let value = if quote == '"' || quote == '\'' {
        rest[1..].split(quote).next()?
    } else {
        rest.split([' ', '>']).next()?
    };
    Some(value.replace("&amp;", "&"))
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn resolve(base: &str, to: &str) -> String {
    if to.contains("://") {
        return to.to_owned();
    }
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..]
        .find('/')
        .map_or(base.len(), |at| authority + at);
    if to.is_empty() {
        base.to_owned()
    } else {
        format!("{}{to}", &base[..end])
    }
}
