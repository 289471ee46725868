//! The container's log: krunner's own standard output and error. Writing there never waits; what has no room is dropped.

use std::os::fd::AsFd;

use crate::sys::fd;
use crate::token::Stream;

/// Linux promises room for this much when it reports any (`PIPE_BUF`).
const PAGE: usize = 4096;

/// Copies a batch program's output, as far as there is room.
pub(crate) fn copy(stream: Stream, data: &[u8]) {
    match stream {
        Stream::Stdout => write(&fd::stdout(), data),
        Stream::Stderr => write(&fd::stderr(), data),
    }
}

/// A sentence for the operator.
pub(crate) fn note(text: &str) {
    write(&fd::stderr(), format!("krunner: {text}\n").as_bytes());
}

fn write(target: &impl AsFd, data: &[u8]) {
    for part in data.chunks(PAGE) {
        if !fd::takes_a_page(target.as_fd())
            || !matches!(fd::write(target.as_fd(), part), Ok(Some(_)))
        {
            return;
        }
    }
}
