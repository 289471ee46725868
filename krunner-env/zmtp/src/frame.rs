//! Frames on the wire: an incremental decoder and the encoder's header (RFC 23, RFC 37).

use bytes::{Buf, Bytes, BytesMut};

use crate::ProtocolError;

const MORE: u8 = 0x01;
const LONG: u8 = 0x02;
const COMMAND: u8 = 0x04;
/// The longest body with a length of one byte.
const SHORT_MAX: usize = 255;

/// One frame: a command, or a part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The frame is a command, not a part of a message.
    pub command: bool,
    /// More parts of the same message follow.
    pub more: bool,
    /// The content.
    pub body: Bytes,
}

/// Cuts a byte stream into frames. Frames share the memory of the bytes fed, so a frame is copied once, when it is fed;
/// the work for a frame does not depend on the number of pieces it comes in.
///
/// ```
/// use zmtp::FrameDecoder;
/// let mut decoder = FrameDecoder::default();
/// decoder.feed(&[0, 2, b'h']);
/// assert_eq!(decoder.next_frame(100), Ok(None));
/// decoder.feed(b"i");
/// let frame = decoder.next_frame(100).unwrap().unwrap();
/// assert_eq!(&frame.body[..], b"hi");
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Adds received bytes.
    pub fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The bytes that are not decoded yet.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Drops the first `count` bytes.
    pub(crate) fn skip(&mut self, count: usize) {
        self.buffer.advance(count);
    }

    /// The next whole frame, `None` while its end is missing.
    ///
    /// # Errors
    /// [`ProtocolError::BadFlags`], or [`ProtocolError::FrameTooLarge`] as soon as a header announces more than `limit` bytes.
    /// The stream cannot be read on after an error.
    pub fn next_frame(&mut self, limit: usize) -> Result<Option<Frame>, ProtocolError> {
        let Some(&flags) = self.buffer.first() else {
            return Ok(None);
        };
        let command = flags & COMMAND != 0;
        let more = flags & MORE != 0;
        if flags & !(MORE | LONG | COMMAND) != 0 || (command && more) {
            return Err(ProtocolError::BadFlags(flags));
        }
        let Some((header, size)) = self.length(flags & LONG != 0) else {
            return Ok(None);
        };
        let size = match usize::try_from(size) {
            Ok(size) if size <= limit => size,
            _ => return Err(ProtocolError::FrameTooLarge { size, limit }),
        };
        if self.buffer.len() - header < size {
            return Ok(None);
        }
        self.buffer.advance(header);
        let body = self.buffer.split_to(size).freeze();
        Ok(Some(Frame {
            command,
            more,
            body,
        }))
    }

    /// The header's length and the body's, once the header is there.
    fn length(&self, long: bool) -> Option<(usize, u64)> {
        if long {
            let bytes = self.buffer.get(1..9)?;
            Some((
                9,
                bytes
                    .iter()
                    .fold(0, |size, &byte| size << 8 | u64::from(byte)),
            ))
        } else {
            self.buffer.get(1).map(|&byte| (2, u64::from(byte)))
        }
    }
}

/// Appends the header of a frame with a body of `size` bytes.
pub(crate) fn put_header(out: &mut BytesMut, command: bool, more: bool, size: usize) {
    let flags = if command { COMMAND } else { 0 } | if more { MORE } else { 0 };
    match u8::try_from(size) {
        Ok(short) => out.extend_from_slice(&[flags, short]),
        Err(_) => {
            debug_assert!(size > SHORT_MAX);
            out.extend_from_slice(&[flags | LONG]);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_from_256_on_take_eight_bytes() {
        for (size, header) in [(0, 2), (255, 2), (256, 9), (70_000, 9)] {
            let mut wire = BytesMut::new();
            put_header(&mut wire, false, true, size);
            assert_eq!(wire.len(), header);
            let mut decoder = FrameDecoder::default();
            decoder.feed(&wire);
            decoder.feed(&vec![7; size]);
            let frame = Frame {
                command: false,
                more: true,
                body: vec![7; size].into(),
            };
            assert_eq!(decoder.next_frame(70_000), Ok(Some(frame)));
            assert_eq!(decoder.next_frame(70_000), Ok(None));
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_its_body_comes() {
        let mut decoder = FrameDecoder::default();
        decoder.feed(&[LONG, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(
            decoder.next_frame(100),
            Err(ProtocolError::FrameTooLarge {
                size: u64::MAX,
                limit: 100
            })
        );
        let mut decoder = FrameDecoder::default();
        decoder.feed(&[0, 101]);
        assert_eq!(
            decoder.next_frame(100),
            Err(ProtocolError::FrameTooLarge {
                size: 101,
                limit: 100
            })
        );
    }

    #[test]
    fn reserved_flags_and_multipart_commands_are_refused() {
        for flags in [0x08, 0x80, COMMAND | MORE] {
            let mut decoder = FrameDecoder::default();
            decoder.feed(&[flags]);
            assert_eq!(decoder.next_frame(100), Err(ProtocolError::BadFlags(flags)));
        }
    }
}
