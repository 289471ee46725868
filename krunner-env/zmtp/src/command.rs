//! The commands of ZMTP 3.0 and 3.1 that a NULL connection knows.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{ProtocolError, SocketType};

/// The longest context of a PING (RFC 37).
const PING_CONTEXT_MAX: usize = 16;

/// A command of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// The peer's properties that matter to us; others are ignored.
    Ready {
        socket_type: Option<Bytes>,
        identity: Bytes,
    },
    /// The peer gives up, with a reason.
    Error(String),
    /// To be answered by PONG with the same context.
    Ping(Bytes),
    /// Subscribe to a prefix (3.1).
    Subscribe(Bytes),
    /// Unsubscribe from a prefix (3.1).
    Cancel(Bytes),
    /// Anything else; RFC 37 lets us ignore it.
    Unknown,
}

impl Command {
    /// Decodes the body of a command frame.
    pub(crate) fn parse(body: &Bytes) -> Result<Self, ProtocolError> {
        let (name, rest) = short_string(body).ok_or(ProtocolError::BadCommand("unnamed"))?;
        Ok(match &name[..] {
            b"READY" => parse_ready(rest)?,
            b"ERROR" => {
                let (reason, _) = short_string(&rest).ok_or(ProtocolError::BadCommand("ERROR"))?;
                Self::Error(String::from_utf8_lossy(&reason).into_owned())
            }
            b"PING" => {
                if rest.len() < 2 || rest.len() > 2 + PING_CONTEXT_MAX {
                    return Err(ProtocolError::BadCommand("PING"));
                }
                Self::Ping(rest.slice(2..))
            }
            b"SUBSCRIBE" => Self::Subscribe(rest),
            b"CANCEL" => Self::Cancel(rest),
            _ => Self::Unknown,
        })
    }
}

/// Splits a string with a length of one byte off.
fn short_string(data: &Bytes) -> Option<(Bytes, Bytes)> {
    let size = usize::from(*data.first()?);
    (data.len() > size).then(|| (data.slice(1..=size), data.slice(1 + size..)))
}

fn parse_ready(mut rest: Bytes) -> Result<Command, ProtocolError> {
    let (mut socket_type, mut identity) = (None, Bytes::new());
    while !rest.is_empty() {
        let (name, value, tail) = property(&rest).ok_or(ProtocolError::BadCommand("READY"))?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = Some(value);
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = value;
        }
        rest = tail;
    }
    Ok(Command::Ready {
        socket_type,
        identity,
    })
}

/// Splits a property off: a name with a length of one byte, a value with a length of four.
fn property(data: &Bytes) -> Option<(Bytes, Bytes, Bytes)> {
    let (name, rest) = short_string(data)?;
    let size = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    let end = usize::try_from(size).ok()?.checked_add(4)?;
    (rest.len() >= end).then(|| (name, rest.slice(4..end), rest.slice(end..)))
}

/// The body of our READY.
pub(crate) fn ready(socket_type: SocketType, identity: &Bytes) -> BytesMut {
    let mut body = named(b"READY");
    put_property(&mut body, b"Socket-Type", socket_type.name().as_bytes());
    if !identity.is_empty() {
        put_property(&mut body, b"Identity", identity);
    }
    body
}

/// The body of a PONG.
pub(crate) fn pong(context: &Bytes) -> BytesMut {
    let mut body = named(b"PONG");
    body.put_slice(context);
    body
}

/// The body of a SUBSCRIBE or CANCEL.
pub(crate) fn subscription(subscribe: bool, prefix: &[u8]) -> BytesMut {
    let mut body = named(if subscribe { b"SUBSCRIBE" } else { b"CANCEL" });
    body.put_slice(prefix);
    body
}

fn named(name: &[u8]) -> BytesMut {
    let mut body = BytesMut::with_capacity(64);
    put_short(&mut body, name);
    body
}

fn put_short(out: &mut BytesMut, text: &[u8]) {
    out.put_u8(u8::try_from(text.len()).expect("our names are shorter than 256 bytes"));
    out.put_slice(text);
}

fn put_property(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put_short(out, name);
    out.put_u32(u32::try_from(value.len()).expect("our values are shorter than 4 GiB"));
    out.put_slice(value);
}
