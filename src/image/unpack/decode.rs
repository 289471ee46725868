//! Compression, told by its first bytes, and a bound on what it may grow to.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};

use flate2::read::MultiGzDecoder;

use super::{read_error, read_full};
use crate::image::ImageError;

/// Reads what a gzip, zstd or plain stream holds.
pub(crate) fn decoder(
    mut source: impl Read + Send + 'static,
    what: &str,
) -> Result<Box<dyn Read + Send>, ImageError> {
    let mut magic = [0; 6];
    let n = read_full(&mut source, &mut magic).map_err(|e| read_error(what, e))?;
    let magic = &magic[..n];
    let whole = BufReader::with_capacity(128 << 10, Cursor::new(magic.to_vec()).chain(source));
    match magic {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(whole).map_err(|e| read_error(what, e))?;
            Ok(Box::new(decoder))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(unsupported(what, "xz compression")),
        [b'B', b'Z', b'h', ..] => Err(unsupported(what, "bzip2 compression")),
        _ => Ok(Box::new(whole)),
    }
}

fn unsupported(what: &str, kind: &str) -> ImageError {
    ImageError::Unsupported {
        what: what.to_owned(),
        kind: kind.to_owned(),
    }
}

/// Ends with an error, not with the end of the stream, where more than `left` bytes come.
pub(crate) struct Limited<R> {
    inner: R,
    left: u64,
    told: u64,
}

impl<R> Limited<R> {
    /// Lets `bytes` through; the error tells `told`, the limit that people know.
    pub(crate) fn new(inner: R, bytes: u64, told: u64) -> Self {
        Self {
            inner,
            left: bytes,
            told,
        }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(PastLimit(self.told))),
        }
        Ok(n)
    }
}

#[derive(Debug)]
struct PastLimit(u64);

impl fmt::Display for PastLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} bytes", self.0)
    }
}

impl std::error::Error for PastLimit {}

/// The limit, if that is what the error is about.
pub(super) fn limit_of(error: &io::Error) -> Option<u64> {
    error
        .get_ref()?
        .downcast_ref::<PastLimit>()
        .map(|limit| limit.0)
}
