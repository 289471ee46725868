//! The frames of a call and of its answer (19.03 RPC library): native byte order, which is little-endian here.

use bytes::Bytes;
use rmpv::ValueRef;

/// What makes a message no call. It is logged and not answered, as the original does.
#[derive(Debug, thiserror::Error)]
pub enum BadCall {
    /// Fewer frames than a call has.
    #[error("{0} frames, a call has header, method, arguments and keyword arguments")]
    Frames(usize),
    /// The header has another length.
    #[error("a header of {0} bytes, 16 expected")]
    Header(usize),
    /// The method's name is not UTF-8.
    #[error("the method's name is not UTF-8")]
    Name,
    /// The arguments are not one msgpack value with UTF-8 texts.
    #[error("{0} are not msgpack: {1}")]
    Arguments(&'static str, String),
}

/// The frames of a call, the leading ones included.
#[derive(Debug)]
pub struct Call {
    /// What stands before the header, to be echoed before the answer.
    pub leading: Vec<Bytes>,
    /// The client matches answers by it.
    pub id: u32,
    /// Name of the method.
    pub method: String,
    /// Positional arguments, msgpack.
    pub args: Bytes,
    /// Keyword arguments, msgpack.
    pub kwargs: Bytes,
}

impl Call {
    /// Cuts a message into its parts: the last four frames are the call.
    ///
    /// # Errors
    /// [`BadCall`] when it cannot be one.
    pub fn parse(mut frames: Vec<Bytes>) -> Result<Self, BadCall> {
        let count = frames.len();
        let at = count.checked_sub(4).ok_or(BadCall::Frames(count))?;
        let Ok([header, name, args, kwargs]) = <[Bytes; 4]>::try_from(frames.split_off(at)) else {
            return Err(BadCall::Frames(count));
        };
        let header: &[u8; 16] = header[..]
            .try_into()
            .map_err(|_| BadCall::Header(header.len()))?;
        Ok(Self {
            leading: frames,
            id: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            method: std::str::from_utf8(&name)
                .map_err(|_| BadCall::Name)?
                .to_owned(),
            args,
            kwargs,
        })
    }
}

/// How deep arguments may be nested.
const DEPTH: usize = 128;

/// How many values one frame may hold: decoded, each takes 40 bytes, however short it was.
const VALUES: u64 = 4 << 20;

/// Refuses frames that would take much more memory than they have bytes. Reads no further than the first problem.
fn count(frame: &[u8]) -> Result<(), &'static str> {
    let (mut rest, mut expected, mut seen) = (frame, 1u64, 0u64);
    while expected > 0 {
        let (&marker, after) = rest.split_first().ok_or("the value is cut off")?;
        let (head, data, children) = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0, 0),
            0x80..=0x8f => (0, 0, u64::from(marker & 0x0f) * 2),
            0x90..=0x9f => (0, 0, u64::from(marker & 0x0f)),
            0xa0..=0xbf => (0, u64::from(marker & 0x1f), 0),
            0xc1 => return Err("the marker 0xc1 is not used"),
            0xc4 | 0xd9 => (1, number(after, 1)?, 0),
            0xc5 | 0xda => (2, number(after, 2)?, 0),
            0xc6 | 0xdb => (4, number(after, 4)?, 0),
            0xc7..=0xc9 | 0xd4..=0xd8 => return Err("extension types are not taken"),
            0xcc | 0xd0 => (1, 0, 0),
            0xcd | 0xd1 => (2, 0, 0),
            0xca | 0xce | 0xd2 => (4, 0, 0),
            0xcb | 0xcf | 0xd3 => (8, 0, 0),
            0xdc => (2, 0, number(after, 2)?),
            0xdd => (4, 0, number(after, 4)?),
            0xde => (2, 0, number(after, 2)? * 2),
            0xdf => (4, 0, number(after, 4)? * 2),
        };
        seen += 1;
        expected = expected - 1 + children;
        if seen + expected > VALUES {
            return Err("there are too many values");
        }
        let skip = usize::try_from(head + data).map_err(|_| "the value is cut off")?;
        rest = after.get(skip..).ok_or("the value is cut off")?;
    }
    Ok(())
}

/// The big-endian number of the first `width` bytes.
fn number(data: &[u8], width: usize) -> Result<u64, &'static str> {
    let digits = data.get(..width).ok_or("the value is cut off")?;
    Ok(digits
        .iter()
        .fold(0, |sum, &digit| sum << 8 | u64::from(digit)))
}

/// Decodes one msgpack value that fills the frame and whose texts are UTF-8; extension types are refused.
///
/// # Errors
/// [`BadCall::Arguments`]; `what` names the frame.
pub fn decode<'a>(what: &'static str, frame: &'a [u8]) -> Result<ValueRef<'a>, BadCall> {
    count(frame).map_err(|text| BadCall::Arguments(what, text.to_owned()))?;
    let mut rest = frame;
    let value = rmpv::decode::read_value_ref_with_max_depth(&mut rest, DEPTH)
        .map_err(|error| BadCall::Arguments(what, error.to_string()))?;
    if !rest.is_empty() {
        let text = format!("{} bytes too many", rest.len());
        return Err(BadCall::Arguments(what, text));
    }
    check(&value).map_err(|text| BadCall::Arguments(what, text.to_owned()))?;
    Ok(value)
}

fn check(value: &ValueRef<'_>) -> Result<(), &'static str> {
    match value {
        ValueRef::String(text) if text.as_str().is_none() => Err("a text is not UTF-8"),
        ValueRef::Array(items) => items.iter().try_for_each(check),
        ValueRef::Map(pairs) => pairs
            .iter()
            .try_for_each(|(key, value)| check(key).and_then(|()| check(value))),
        _ => Ok(()),
    }
}

/// The header of an answer, 17 bytes: `prefix` is the agent's process id and a random number, `now` Unix time in seconds.
pub fn answer_header(prefix: [u8; 4], id: u32, now: f64, error: bool) -> Bytes {
    let mut header = Vec::with_capacity(17);
    header.extend(prefix);
    header.extend(id.to_ne_bytes());
    header.extend(now.to_ne_bytes());
    header.push(u8::from(error));
    header.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(frames: &[&'static [u8]]) -> Vec<Bytes> {
        frames.iter().map(|f| Bytes::from_static(f)).collect()
    }

    const HEADER: &[u8] = b"\x60\x4d\x91\x72\x01\0\0\0\x38\xac\xe7\x34\x30\xc1\xda\x41";

    #[test]
    fn the_last_four_frames_are_the_call() {
        let call = Call::parse(frames(&[b"a", b"", HEADER, b"ping", b"\x90", b"\x80"]));
        let call = call.expect("a call");
        assert_eq!(call.leading, frames(&[b"a", b""]));
        assert_eq!((call.id, call.method.as_str()), (1, "ping"));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for bad in [
            &[HEADER, b"ping", b"\x90"][..],
            &[],
            &[&HEADER[..15], b"ping", b"\x90", b"\x80"],
            &[HEADER, b"\xff", b"\x90", b"\x80"],
        ] {
            assert!(Call::parse(frames(bad)).is_err());
        }
    }

    #[test]
    fn arguments_must_be_one_clean_value() {
        for bad in [
            &b""[..],
            b"\x91",
            b"\x90\x90",
            b"\xa1\xff",
            b"\x91\xa1\xff",
            b"\xd4\x7e\x00",
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ] {
            assert!(decode("arguments", bad).is_err(), "{bad:x?}");
        }
        let deep = vec![0x91; 1 << 20];
        assert!(decode("arguments", &deep).is_err());
    }

    #[test]
    fn many_short_values_are_refused_before_they_take_memory() {
        let list = |count: u32| {
            let mut frame = vec![0xdd];
            frame.extend(count.to_be_bytes());
            frame.resize(frame.len() + count as usize, 0xc0);
            frame
        };
        assert!(decode("arguments", &list(1 << 20)).is_ok());
        let refused = decode("arguments", &list(5 << 20)).expect_err("too many");
        assert!(refused.to_string().contains("too many values"));
    }

    proptest::proptest! {
        #[test]
        fn counting_and_decoding_agree(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            let decoded = rmpv::decode::read_value(&mut rest).is_ok();
            let reserved_or_ext = bytes.iter().any(|b| matches!(b, 0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8));
            if !reserved_or_ext {
                proptest::prop_assert_eq!(count(&bytes).is_ok(), decoded);
            }
        }
    }

    #[test]
    fn an_answers_header_has_17_bytes() {
        let header = answer_header([0x60, 0x4d, 0, 0xf7], 1, 0.0, true);
        assert_eq!(
            &header[..],
            b"\x60\x4d\x00\xf7\x01\0\0\0\0\0\0\0\0\0\0\0\x01"
        );
    }
}
