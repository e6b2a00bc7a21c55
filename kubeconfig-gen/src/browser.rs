//! Signing in in a browser: the code comes to a listener on the loopback address (RFC 8252 §7.3).

use std::{process::Stdio, time::Duration};

use oauth2::RedirectUrl;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time,
};
use url::Url;

use crate::{
    commands::Error,
    oauth::{OAuth, loopback},
    output::remark,
    tokens::Issued,
};

/// Opens a browser, and waits for the code that it brings.
///
/// # Errors
/// See [`Error`].
pub async fn sign_in(oauth: &OAuth) -> Result<Issued, Error> {
    let error = |e| Error::Read("the loopback address".to_owned(), e);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(error)?;
    let port = listener.local_addr().map_err(error)?.port();
    let redirect = loopback(port);
    let attempt = oauth.begin(RedirectUrl::from_url(redirect.clone()));
    remark(&format!(
        "Sign in in your browser; if none opens, visit:\n\n  {}\n",
        attempt.url
    ));
    open(&attempt.url);
    match time::timeout(PATIENCE, callback(&listener, &redirect)).await {
        Ok(callback) => Ok(oauth.finish(attempt, &callback.map_err(error)?).await?),
        Err(_) => Err(Error::Refused(format!(
            "nobody signed in within {} minutes; run it again, or sign in here with --username NAME",
            PATIENCE.as_secs() / 60
        ))),
    }
}

/// The URL with which the browser came back. Whatever else asks (for an icon) is told that there is nothing.
async fn callback(listener: &TcpListener, redirect: &Url) -> std::io::Result<Url> {
    loop {
        let (connection, _) = listener.accept().await?;
        // One that connects and says nothing may not keep the browser out.
        if let Ok(Ok(Some(url))) = time::timeout(ONE_REQUEST, answer(connection, redirect)).await {
            return Ok(url);
        }
    }
}

async fn answer(connection: TcpStream, redirect: &Url) -> std::io::Result<Option<Url>> {
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
    let (status, page) = match url {
        Some(_) => ("200 OK", PAGE),
        None => ("404 Not Found", ""),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
        page.len()
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await?;
    Ok(url)
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

/// For a person who looks for a password.
const PATIENCE: Duration = Duration::from_secs(300);

const ONE_REQUEST: Duration = Duration::from_secs(5);

const MAX_LINE: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_code_is_taken_and_anything_else_is_not() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let redirect = loopback(address.port());
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
            assert!(ask("/favicon.ico").await.starts_with("HTTP/1.1 404"));
            assert!(
                ask("//evil/callback?code=x")
                    .await
                    .starts_with("HTTP/1.1 404")
            );
            assert!(
                ask("/callback?code=a&state=b")
                    .await
                    .starts_with("HTTP/1.1 200")
            );
        };
        let (url, ()) = tokio::join!(callback(&listener, &redirect), browser);
        assert_eq!(url.unwrap().query(), Some("code=a&state=b"));
    }
}
