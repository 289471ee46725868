//! The output pipes of a program: read without waiting, and not at all while the queue of records is full.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fd;
use crate::token::Token;

/// The reading end of a pipe in the event loop.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: Option<OwnedFd>,
    token: Token,
    watched: bool,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// This many bytes.
    Data(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever: all writers are gone.
    End,
}

impl Output {
    /// Makes a pipe: ours to read, and the end for the program.
    pub(crate) fn pipe(token: Token) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = fd::pipe()?;
        fd::set_nonblocking(reader.as_fd())?;
        Ok((
            Self {
                pipe: Some(reader),
                token,
                watched: false,
            },
            writer,
        ))
    }

    /// Watches the pipe or leaves it alone. A pipe that cannot be watched is closed: its program gets an error instead of
    /// waiting for ever.
    pub(crate) fn watch(&mut self, epoll: &Epoll, wanted: bool) {
        let Some(pipe) = &self.pipe else { return };
        if wanted == self.watched {
            return;
        }
        self.watched = wanted;
        if !wanted {
            // Even with nothing asked for, epoll would report the pipe's end again and again.
            epoll.remove(pipe.as_fd());
        } else if epoll
            .add(pipe.as_fd(), self.token.into(), Interest::READ)
            .is_err()
        {
            self.pipe = None;
        }
    }

    /// Reads once.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Chunk {
        let Some(pipe) = &self.pipe else {
            return Chunk::End;
        };
        match fd::read(pipe.as_fd(), buffer) {
            Ok(None) => Chunk::Empty,
            Ok(Some(0)) | Err(_) => {
                self.pipe = None;
                Chunk::End
            }
            Ok(Some(count)) => Chunk::Data(count),
        }
    }

    /// Whether an event with this token is about this pipe, and the gate is open.
    pub(crate) fn has(&self, token: Token) -> bool {
        self.token == token && self.watched
    }

    /// Whether the end has been read.
    pub(crate) fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }
}
