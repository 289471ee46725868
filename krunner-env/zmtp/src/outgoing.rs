//! Encoded bytes that wait to be written to one peer.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::{Message, frame};

/// Bodies from this size on are not copied between their headers but written from where they are.
const LARGE: usize = 32 << 10;

/// A queue of bytes. Positions count from the start of the connection, so that an owner can tell
/// whether the message that ended at a position has been written.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    segments: VecDeque<Bytes>,
    open: BytesMut,
    appended: u64,
    written: u64,
}

impl Outgoing {
    /// Appends raw bytes.
    pub(crate) fn put(&mut self, data: &[u8]) {
        self.open.extend_from_slice(data);
        self.appended += data.len() as u64;
    }

    /// Appends a command frame.
    pub(crate) fn put_command(&mut self, body: &[u8]) {
        let before = self.open.len();
        frame::put_header(&mut self.open, true, false, body.len());
        self.appended += (self.open.len() - before) as u64;
        self.put(body);
    }

    /// Appends a message.
    pub(crate) fn put_message(&mut self, message: &Message) {
        let last = message.frames().len() - 1;
        for (index, body) in message.frames().iter().enumerate() {
            let before = self.open.len();
            frame::put_header(&mut self.open, false, index < last, body.len());
            self.appended += (self.open.len() - before) as u64;
            if body.len() < LARGE {
                self.put(body);
            } else {
                self.seal();
                self.segments.push_back(body.clone());
                self.appended += body.len() as u64;
            }
        }
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.segments.push_back(self.open.split().freeze());
        }
    }

    /// The bytes to write next: a part of all, empty if there are none.
    pub(crate) fn front(&mut self) -> &[u8] {
        if self.segments.is_empty() {
            self.seal();
        }
        self.segments.front().map_or(&[], |segment| &segment[..])
    }

    /// Forgets the first `count` bytes, which have been written. More than there are counts as all.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count;
        while left > 0 && !self.front().is_empty() {
            let Some(segment) = self.segments.front_mut() else {
                return;
            };
            let part = left.min(segment.len());
            segment.advance(part);
            if segment.is_empty() {
                self.segments.pop_front();
            }
            self.written += part as u64;
            left -= part;
        }
    }

    /// The position of the end.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// The position up to which all is written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that wait.
    pub(crate) fn pending(&self) -> usize {
        usize::try_from(self.appended - self.written).expect("what waits is in memory")
    }
}
