//! A sign of life for whoever watches while something takes longer than a second.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::time;

use crate::output;

/// Waits for `work`; says on a terminal what is waited for, and takes it back when it's done.
pub async fn during<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !output::is_watched() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let began = time::Instant::now();
    let mut shown = false;
    let result = loop {
        match time::timeout(TICK, &mut work).await {
            Ok(result) => break result,
            Err(_) => {
                shown = true;
                write(&format!(
                    "\r\x1b[2K{what} … {} s",
                    began.elapsed().as_secs()
                ));
            }
        }
    };
    if shown {
        write("\r\x1b[2K");
    }
    result
}

fn write(text: &str) {
    let mut err = io::stderr().lock();
    // Whoever can't be told is not to be told.
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}

const TICK: Duration = Duration::from_secs(1);
