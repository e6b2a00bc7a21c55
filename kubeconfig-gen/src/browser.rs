//! Signing in in a browser: the code comes to a listener on the loopback address (RFC 8252 §7.3).

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time,
};
use url::Url;

use crate::{commands::Error, oauth::loopback, output::remark};

/// A listener on the loopback address, for one sign-in.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    redirect: Url,
}

impl Loopback {
    /// On a free port.
    ///
    /// # Errors
    /// There is none.
    pub async fn listen() -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(broken)?;
        let port = listener.local_addr().map_err(broken)?.port();
        Ok(Self {
            listener,
            redirect: loopback(port),
        })
    }

    /// Where the browser is to be sent.
    pub const fn redirect(&self) -> &Url {
        &self.redirect
    }

    /// The URL with which the browser came back from the sign-in. Whatever else asks is told that there is nothing:
    /// a browser asks for icons, and any page in it can come here with a code of its own.
    ///
    /// # Errors
    /// Nobody came for a long time.
    pub async fn answer(self, is_ours: impl Fn(&Url) -> bool) -> Result<Url, Error> {
        match time::timeout(PATIENCE, self.first(is_ours)).await {
            Ok(callback) => callback.map_err(broken),
            Err(_) => Err(Error::Refused(format!(
                "nobody signed in within {} minutes; run it again, or on a machine without a browser: towline login --device",
                PATIENCE.as_secs() / 60
            ))),
        }
    }

    async fn first(&self, is_ours: impl Fn(&Url) -> bool) -> std::io::Result<Url> {
        loop {
            let (connection, _) = self.listener.accept().await?;
            // One that connects and says nothing may not keep the browser out.
            let answer = answer(connection, &self.redirect, &is_ours);
            if let Ok(Ok(Some(url))) = time::timeout(ONE_REQUEST, answer).await {
                return Ok(url);
            }
        }
    }
}

/// Says what to open, and opens it when `by_itself`.
pub fn show(url: &Url, by_itself: bool) {
    let what = if by_itself {
        "Sign in in your browser; if none opens, visit:"
    } else {
        "Sign in in a browser on this machine; visit:"
    };
    remark(&format!("{what}\n\n  {url}\n"));
    if by_itself {
        open(url);
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::Read("the loopback address".to_owned(), error)
}

async fn answer(
    connection: TcpStream,
    redirect: &Url,
    is_ours: impl Fn(&Url) -> bool,
) -> std::io::Result<Option<Url>> {
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    (&mut connection)
        .take(MAX_LINE)
        .read_line(&mut line)
        .await?;
    let target = line
        .strip_prefix("GET ")
        .and_then(|rest| rest.split(' ').next());
    let url = target
        .and_then(|target| redirect.join(target).ok())
        .filter(|url| url.path() == redirect.path() && url.origin() == redirect.origin());
    let is_answer = url.as_ref().is_some_and(&is_ours);
    let (status, page) = match &url {
        // Nothing of what came is shown again: it may be anybody's.
        Some(url) if is_answer && url.query_pairs().any(|(key, _)| key == "error") => {
            ("200 OK", REFUSED_PAGE)
        }
        Some(_) if is_answer => ("200 OK", PAGE),
        Some(_) => {
            remark("An answer to another sign-in came and was passed over; still waiting.");
            ("400 Bad Request", FOREIGN_PAGE)
        }
        None => ("404 Not Found", ""),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncache-control: no-store\r\nreferrer-policy: no-referrer\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
        page.len()
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await?;
    Ok(url.filter(|_| is_answer))
}

fn open(url: &Url) {
    let (program, arguments): (&str, &[&str]) = if cfg!(target_os = "macos") {
        ("open", &[])
    } else if cfg!(windows) {
        ("rundll32", &["url.dll,FileProtocolHandler"])
    } else {
        ("xdg-open", &[])
    };
    let command = std::process::Command::new(program)
        .args(arguments)
        .arg(url.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // The address was printed: without a browser it is opened by hand.
    drop(command);
}

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>Towline</title>\
<p>You can close this page and go back to your terminal.";

const REFUSED_PAGE: &str = "<!doctype html><meta charset=utf-8><title>Towline</title>\
<p>The sign-in was refused; your terminal says why.";

const FOREIGN_PAGE: &str = "<!doctype html><meta charset=utf-8><title>Towline</title>\
<p>This is not the answer to the sign-in that was begun in your terminal. Open the address that it printed.";

/// For a person who looks for a password.
const PATIENCE: Duration = Duration::from_secs(300);

const ONE_REQUEST: Duration = Duration::from_secs(5);

const MAX_LINE: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_answer_is_taken_and_anything_else_is_not() {
        let loopback = Loopback::listen().await.unwrap();
        let address = loopback.listener.local_addr().unwrap();
        let ask = async |target: &str| {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection
                .write_all(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            connection
                .read_to_string(&mut answer)
                .await
                .unwrap_or_default();
            answer
        };
        let browser = async {
            for (target, status) in [
                ("/favicon.ico", "404"),
                ("//evil/callback?code=x&state=ours", "404"),
                ("/callback?code=evil&state=theirs", "400"),
                ("/callback?code=evil", "400"),
                ("/callback?code=a&state=ours", "200"),
            ] {
                let answer = ask(target).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status}")),
                    "{target}: {answer}"
                );
                assert!(!answer.contains("evil"), "{answer}");
            }
        };
        let is_ours = |url: &Url| {
            url.query()
                .is_some_and(|query| query.contains("state=ours"))
        };
        let (url, ()) = tokio::join!(loopback.answer(is_ours), browser);
        assert_eq!(url.unwrap().query(), Some("code=a&state=ours"));
    }
}
