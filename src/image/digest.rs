//! SHA-256 digests, and readers and writers that compute them on the way.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// A digest in its text form, `sha256:` and 64 lower-case hex digits; nothing else passes, so it is safe in a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Length of the text form.
    const LEN: usize = 7 + 64;

    /// Checks the text form; `None` where it is another algorithm's or nobody's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let good = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (text.len() == Self::LEN && hex.bytes().all(good)).then(|| Self(text.to_owned()))
    }

    /// The digest of a few bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    fn finish(hasher: Sha256) -> Self {
        Self(format!("sha256:{}", hex::encode(hasher.finalize())))
    }

    /// The 64 hex digits: its file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// `sha256:…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Passes bytes through, in either direction, and keeps their number and digest.
#[derive(Debug)]
pub(super) struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    /// Around a reader or a writer.
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            count: 0,
        }
    }

    /// Digest and number of the bytes that went through.
    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::finish(self.hasher), self.count)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.passed(&buffer[..n]);
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.passed(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_of_full_length_is_a_digest() {
        let good = Digest::of(b"x");
        assert_eq!(Digest::parse(good.as_str()), Some(good.clone()));
        assert_eq!(Digest::parse(good.hex()), None);
        assert_eq!(Digest::parse(&good.as_str()[..70]), None);
        assert_eq!(Digest::parse(&good.as_str().to_uppercase()), None);
        assert_eq!(Digest::parse("sha256:../../../../etc/passwd"), None);
    }

    #[test]
    fn a_hashing_writer_has_the_digest_of_what_was_written() {
        let mut writer = Hashing::new(Vec::new());
        writer.write_all(b"ab").expect("memory takes it");
        writer.write_all(b"c").expect("memory takes it");
        assert_eq!(writer.finish(), (Digest::of(b"abc"), 3));
    }
}
