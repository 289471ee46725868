//! Python 3.6 as it shows on the wire: `str()`, `repr()` and `int()` of decoded values. The 19.03 RPC library converts
//! arguments with them and quotes them in its errors.

use std::fmt::Write;

use rmpv::ValueRef;

/// `str(value)`.
pub fn text(value: &ValueRef<'_>) -> String {
    match value {
        ValueRef::String(text) => text.as_str().unwrap_or_default().to_owned(),
        other => repr(other),
    }
}

/// `repr(value)`; arrays are tuples, as the library decodes them.
pub fn repr(value: &ValueRef<'_>) -> String {
    match value {
        ValueRef::Nil => "None".to_owned(),
        ValueRef::Boolean(true) => "True".to_owned(),
        ValueRef::Boolean(false) => "False".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::F32(number) => float(f64::from(*number)),
        ValueRef::F64(number) => float(*number),
        ValueRef::String(text) => quote(text.as_str().unwrap_or_default()),
        ValueRef::Binary(bytes) => quote_bytes(bytes),
        ValueRef::Array(items) => tuple(&items.iter().map(repr).collect::<Vec<_>>()),
        ValueRef::Map(pairs) => {
            let pair = |(key, value): &(_, _)| format!("{}: {}", repr(key), repr(value));
            format!(
                "{{{}}}",
                pairs.iter().map(pair).collect::<Vec<_>>().join(", ")
            )
        }
        ValueRef::Ext(code, data) => format!("ExtType(code={code}, data={})", quote_bytes(data)),
    }
}

/// The text form of a tuple of items that are in text form already: `(1,)`, `(1, 2)`.
pub fn tuple(items: &[String]) -> String {
    match items {
        [one] => format!("({one},)"),
        _ => format!("({})", items.join(", ")),
    }
}

/// `type(value).__name__`.
pub fn type_name(value: &ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Nil => "NoneType",
        ValueRef::Boolean(_) => "bool",
        ValueRef::Integer(_) => "int",
        ValueRef::F32(_) | ValueRef::F64(_) => "float",
        ValueRef::String(_) => "str",
        ValueRef::Binary(_) => "bytes",
        ValueRef::Array(_) => "tuple",
        ValueRef::Map(_) => "dict",
        ValueRef::Ext(..) => "ExtType",
    }
}

/// `repr` of a str: single quotes unless the text has some and no double ones; what cannot be printed is escaped.
///
/// ```
/// use backendai_agent::manager::v1903::python::quote;
/// assert_eq!(quote("it's"), r#""it's""#);
/// assert_eq!(quote("a\n\u{200b}"), r"'a\n\u200b'");
/// ```
pub fn quote(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => escape(&mut out, u32::from(c)),
        }
    }
    out.push(quote);
    out
}

fn escape(out: &mut String, code: u32) {
    let written = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
    written.expect("writing to a String cannot fail");
}

/// `str.isprintable` of one character. Rust's own escaping follows the same Unicode categories; behind another
/// character it leaves combining marks alone, as Python does.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    let mut pair = String::from("a");
    pair.push(c);
    pair.escape_debug().count() == 2
}

fn quote_bytes(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') {
        b'"'
    } else {
        b'\''
    };
    let mut out = String::from("b");
    out.push(char::from(quote));
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte if byte == quote => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            byte => escape(&mut out, u32::from(byte)),
        }
    }
    out.push(char::from(quote));
    out
}

/// `repr` of a float: the shortest text that reads back as the same number, with an exponent below 1e-4 and from 1e16.
///
/// ```
/// use backendai_agent::manager::v1903::python::float;
/// assert_eq!(float(0.0), "0.0");
/// assert_eq!(float(123.456789), "123.456789");
/// assert_eq!(float(1e16), "1e+16");
/// ```
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = number.abs();
    if number != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text
            .split_once('e')
            .expect("the exponent form has an exponent");
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

/// `int(text)`: white space around, a sign, single underscores between digits. `None` where Python says no.
/// Numbers beyond 64 bits are cut to the nearest.
pub fn parse_int(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let grouped = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if grouped || digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit() || c == '_') {
        return None;
    }
    let value = digits
        .chars()
        .filter_map(|c| c.to_digit(10))
        .fold(0i64, |sum, digit| {
            sum.saturating_mul(10).saturating_add(i64::from(digit))
        });
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Right-hand sides: Python 3.6.15.
    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        for (text, quoted) in [
            ("a'b", "\"a'b\""),
            ("a\"b", "'a\"b'"),
            ("a'\"b", "'a\\'\"b'"),
            ("\n\t\r\\", "'\\n\\t\\r\\\\'"),
            ("\0\x7f\u{80}\u{a0}\u{ad}", "'\\x00\\x7f\\x80\\xa0\\xad'"),
            ("é\u{200b}\u{2028}", "'é\\u200b\\u2028'"),
            ("😀", "'😀'"),
            ("\u{e000}", "'\\ue000'"),
            ("\u{301}a", "'\u{301}a'"),
            ("\u{e0001}", "'\\U000e0001'"),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }

    #[test]
    fn values_become_text_as_python_makes_it() {
        let cases: [(ValueRef<'_>, &str); 9] = [
            (5.into(), "5"),
            (ValueRef::Nil, "None"),
            (1.5.into(), "1.5"),
            (ValueRef::Binary(b"a\xff'"), "b\"a\\xff'\""),
            (ValueRef::Array(vec![1.into(), "a".into()]), "(1, 'a')"),
            (ValueRef::Array(vec![1.into()]), "(1,)"),
            (ValueRef::Map(vec![("a".into(), 1.into())]), "{'a': 1}"),
            (ValueRef::Boolean(true), "True"),
            ("x'".into(), "x'"),
        ];
        for (value, expected) in cases {
            assert_eq!(text(&value), expected);
        }
    }

    #[test]
    fn floats_read_back_and_look_like_pythons() {
        for (number, expected) in [
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e22, "1e+22"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn integers_are_read_as_python_reads_them() {
        assert_eq!(parse_int(" 4 "), Some(4));
        assert_eq!(parse_int("1_000"), Some(1000));
        assert_eq!(parse_int("-7"), Some(-7));
        for bad in ["", "x", "1__0", "_1", "1_", "1.0", "--1", "+-1"] {
            assert_eq!(parse_int(bad), None, "{bad}");
        }
    }
}
