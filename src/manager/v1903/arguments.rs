//! Arguments of a call, bound to the method's parameters and converted to their declared types as Python 3.6 and the
//! 19.03 RPC library do, with the same words when that fails.

use bytes::Bytes;
use rmpv::ValueRef;

use super::python;
use super::wire_error::WireError;

type Pairs<'a> = Vec<(ValueRef<'a>, ValueRef<'a>)>;

/// The longest block of zero bytes that an integer in the place of bytes makes.
const ZEROES_MAX: i64 = 64 << 20;

/// The values of a call's parameters, to be taken in the order of the parameters.
#[derive(Debug)]
pub struct Arguments<'a> {
    parameters: &'static [&'static str],
    values: std::vec::IntoIter<ValueRef<'a>>,
    taken: usize,
}

impl<'a> Arguments<'a> {
    /// Binds positional and keyword arguments to parameters, all of which must be given.
    ///
    /// # Errors
    /// `ParametersError` as the original words it.
    pub fn bind(
        parameters: &'static [&'static str],
        args: ValueRef<'a>,
        kwargs: ValueRef<'a>,
    ) -> Result<Self, WireError> {
        let mut keywords = keywords(kwargs)?;
        let mut values = positional(args)?;
        if values.len() > parameters.len() {
            return Err(type_error("too many positional arguments"));
        }
        let given = values.len();
        for (position, &name) in parameters.iter().enumerate() {
            let found = keywords.iter().position(|(key, _)| key == name);
            match found {
                Some(_) if position < given => {
                    let text = format!("multiple values for argument '{name}'");
                    return Err(type_error(&text));
                }
                Some(at) => values.push(keywords.remove(at).1),
                None if position >= given => {
                    let text = format!("missing a required argument: '{name}'");
                    return Err(type_error(&text));
                }
                None => {}
            }
        }
        if let Some((name, _)) = keywords.first() {
            let text = format!("got an unexpected keyword argument {}", python::quote(name));
            return Err(type_error(&text));
        }
        Ok(Self {
            parameters,
            values: values.into_iter(),
            taken: 0,
        })
    }

    fn next(&mut self) -> ValueRef<'a> {
        self.taken += 1;
        self.values.next().unwrap_or(ValueRef::Nil)
    }

    /// The error of the parameter taken last.
    fn invalid(&self, repr: &str) -> WireError {
        let name = self.parameters.get(self.taken - 1).unwrap_or(&"");
        WireError::parameters(format!("Invalid value for argument '{name}': {repr}"))
    }

    fn wrong(&self, class: &'static str, text: &str) -> WireError {
        self.invalid(&format!("{class}({},)", python::quote(text)))
    }

    /// Declared `str`: anything in text form.
    pub fn text(&mut self) -> String {
        python::text(&self.next())
    }

    /// Declared `int`.
    ///
    /// # Errors
    /// `ParametersError`.
    pub fn int(&mut self) -> Result<i64, WireError> {
        let value = self.next();
        let parsed = match &value {
            ValueRef::Boolean(value) => return Ok(i64::from(*value)),
            ValueRef::Integer(number) => return Ok(number.as_i64().unwrap_or(i64::MAX)),
            ValueRef::F32(number) => return self.whole(f64::from(*number)),
            ValueRef::F64(number) => return self.whole(*number),
            ValueRef::String(text) => text.as_str().and_then(python::parse_int),
            ValueRef::Binary(data) => std::str::from_utf8(data).ok().and_then(python::parse_int),
            other => {
                let text = format!(
                    "int() argument must be a string, a bytes-like object or a number, not '{}'",
                    python::type_name(other)
                );
                return Err(self.wrong("TypeError", &text));
            }
        };
        parsed.ok_or_else(|| {
            let literal = python::repr(&value);
            let text = format!("invalid literal for int() with base 10: {literal}");
            self.wrong("ValueError", &text)
        })
    }

    fn whole(&self, number: f64) -> Result<i64, WireError> {
        if number.is_nan() {
            return Err(self.wrong("ValueError", "cannot convert float NaN to integer"));
        }
        if number.is_infinite() {
            let text = "cannot convert float infinity to integer";
            return Err(self.wrong("OverflowError", text));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "int() cuts the fraction off"
        )]
        Ok(number as i64)
    }

    /// Declared `bool`: truthiness.
    pub fn truth(&mut self) -> bool {
        match self.next() {
            ValueRef::Nil => false,
            ValueRef::Boolean(value) => value,
            ValueRef::Integer(number) => number.as_i64() != Some(0),
            ValueRef::F32(number) => number != 0.0,
            ValueRef::F64(number) => number != 0.0,
            ValueRef::String(text) => text.as_str() != Some(""),
            ValueRef::Binary(data) => !data.is_empty(),
            ValueRef::Array(items) => !items.is_empty(),
            ValueRef::Map(pairs) => !pairs.is_empty(),
            ValueRef::Ext(..) => true,
        }
    }

    /// Declared `dict`: a map, or a sequence of pairs.
    ///
    /// # Errors
    /// `ParametersError`.
    pub fn dict(&mut self) -> Result<Pairs<'a>, WireError> {
        match self.next() {
            ValueRef::Map(pairs) => Ok(pairs),
            ValueRef::Array(items) => self.pairs(items),
            ValueRef::String(text) if text.as_str() == Some("") => Ok(Vec::new()),
            ValueRef::Binary([]) => Ok(Vec::new()),
            ValueRef::String(_) => Err(self.wrong("ValueError", &pair_length(0, 1))),
            ValueRef::Binary(_) => Err(self.wrong("TypeError", &no_pair(0))),
            other => {
                let text = format!("'{}' object is not iterable", python::type_name(&other));
                Err(self.wrong("TypeError", &text))
            }
        }
    }

    fn pairs(&self, items: Vec<ValueRef<'a>>) -> Result<Pairs<'a>, WireError> {
        let mut pairs = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let parts = match item {
                ValueRef::Array(parts) => parts,
                ValueRef::Map(parts) => parts.into_iter().map(|(key, _)| key).collect(),
                _ => return Err(self.wrong("TypeError", &no_pair(index))),
            };
            let count = parts.len();
            let Ok([key, value]) = <[ValueRef<'a>; 2]>::try_from(parts) else {
                return Err(self.wrong("ValueError", &pair_length(index, count)));
            };
            if matches!(key, ValueRef::Map(_)) {
                return Err(self.wrong("TypeError", "unhashable type: 'dict'"));
            }
            pairs.push((key, value));
        }
        Ok(pairs)
    }

    /// Declared `bytes`; a bin value of `frame` is not copied.
    ///
    /// # Errors
    /// `ParametersError`.
    pub fn bytes(&mut self, frame: &Bytes) -> Result<Bytes, WireError> {
        match self.next() {
            ValueRef::Binary([]) => Ok(Bytes::new()),
            ValueRef::Binary(data) => Ok(frame.slice_ref(data)),
            ValueRef::Boolean(value) => Ok(vec![0; usize::from(value)].into()),
            ValueRef::Integer(number) => self.zeroes(number.as_i64().unwrap_or(i64::MAX)),
            ValueRef::Array(items) => self.octets(items.iter()),
            ValueRef::Map(pairs) => self.octets(pairs.iter().map(|(key, _)| key)),
            ValueRef::String(_) => {
                Err(self.wrong("TypeError", "string argument without an encoding"))
            }
            other => {
                let name = python::type_name(&other);
                let text = format!("cannot convert '{name}' object to bytes");
                Err(self.wrong("TypeError", &text))
            }
        }
    }

    fn zeroes(&self, count: i64) -> Result<Bytes, WireError> {
        if count > ZEROES_MAX {
            return Err(self.invalid("MemoryError()"));
        }
        usize::try_from(count)
            .map(|count| vec![0; count].into())
            .map_err(|_| self.wrong("ValueError", "negative count"))
    }

    fn octets<'b>(
        &self,
        items: impl Iterator<Item = &'b ValueRef<'b>>,
    ) -> Result<Bytes, WireError> {
        items
            .map(|item| match item {
                ValueRef::Boolean(value) => Ok(u8::from(*value)),
                ValueRef::Integer(number) => number
                    .as_u64()
                    .and_then(|number| u8::try_from(number).ok())
                    .ok_or_else(|| self.wrong("ValueError", "bytes must be in range(0, 256)")),
                other => {
                    let name = python::type_name(other);
                    let text = format!("'{name}' object cannot be interpreted as an integer");
                    Err(self.wrong("TypeError", &text))
                }
            })
            .collect()
    }

    /// Declared "text that is not empty, or nil": the id of a run.
    ///
    /// # Errors
    /// `ParametersError`.
    pub fn run_id(&mut self) -> Result<Option<String>, WireError> {
        let problem = match self.next() {
            ValueRef::Nil => return Ok(None),
            ValueRef::String(text) => match text.as_str() {
                Some(text) if !text.is_empty() => return Ok(Some(text.to_owned())),
                _ => "blank value is not allowed",
            },
            _ => "value is not a string",
        };
        Err(self.data_error(problem))
    }

    /// Declared "number or nil": seconds.
    ///
    /// # Errors
    /// `ParametersError`.
    pub fn seconds(&mut self) -> Result<Option<f64>, WireError> {
        let parsed = match self.next() {
            ValueRef::Nil => return Ok(None),
            ValueRef::Boolean(value) => return Ok(Some(f64::from(u8::from(value)))),
            ValueRef::Integer(number) => number.as_f64(),
            ValueRef::F32(number) => Some(f64::from(number)),
            ValueRef::F64(number) => Some(number),
            ValueRef::String(text) => text.as_str().and_then(|text| text.trim().parse().ok()),
            ValueRef::Binary(data) => std::str::from_utf8(data)
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            _ => return Err(self.data_error("value is not float")),
        };
        match parsed {
            Some(number) => Ok(Some(number)),
            None => Err(self.data_error("value can't be converted to float")),
        }
    }

    fn data_error(&self, problem: &str) -> WireError {
        self.invalid(&format!(
            "DataError({{0: DataError({problem}), 1: DataError(value should be None)}})"
        ))
    }
}

fn pair_length(index: usize, length: usize) -> String {
    format!("dictionary update sequence element #{index} has length {length}; 2 is required")
}

fn no_pair(index: usize) -> String {
    format!("cannot convert dictionary update sequence element #{index} to a sequence")
}

fn positional(args: ValueRef<'_>) -> Result<Vec<ValueRef<'_>>, WireError> {
    match args {
        ValueRef::Array(items) => Ok(items),
        ValueRef::Map(pairs) => Ok(pairs.into_iter().map(|(key, _)| key).collect()),
        other => {
            let name = python::type_name(&other);
            let text = format!("bind() argument after * must be an iterable, not {name}");
            Err(type_error(&text))
        }
    }
}

fn keywords(kwargs: ValueRef<'_>) -> Result<Vec<(String, ValueRef<'_>)>, WireError> {
    let ValueRef::Map(pairs) = kwargs else {
        let name = python::type_name(&kwargs);
        let text = format!("bind() argument after ** must be a mapping, not {name}");
        return Err(type_error(&text));
    };
    pairs
        .into_iter()
        .map(|(key, value)| match &key {
            ValueRef::String(name) => Ok((name.as_str().unwrap_or_default().to_owned(), value)),
            _ => Err(type_error("bind() keywords must be strings")),
        })
        .collect()
}

fn type_error(text: &str) -> WireError {
    WireError::parameters(format!("TypeError({},)", python::quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLOAD: &[&str] = &["kernel_id", "filename", "filedata"];

    fn array<'a>(items: Vec<ValueRef<'a>>) -> ValueRef<'a> {
        ValueRef::Array(items)
    }

    fn map<'a>(pairs: Vec<(ValueRef<'a>, ValueRef<'a>)>) -> ValueRef<'a> {
        ValueRef::Map(pairs)
    }

    fn message<T: std::fmt::Debug>(result: Result<T, WireError>) -> String {
        let repr = result.expect_err("must be refused").repr();
        repr.strip_prefix("ParametersError(")
            .and_then(|rest| rest.strip_suffix(",)"))
            .map(|quoted| quoted[1..quoted.len() - 1].replace("\\'", "'"))
            .expect("a ParametersError")
    }

    fn one(value: ValueRef<'static>) -> Arguments<'static> {
        Arguments::bind(&["x"], array(vec![value]), map(vec![])).expect("binds")
    }

    // Expected texts: aiozmq 0.7.1 and trafaret 1.2.0 under Python 3.6.15.
    #[test]
    fn binding_fails_in_pythons_words() {
        let bind = |args, kwargs| message(Arguments::bind(UPLOAD, args, kwargs));
        let none = || map(vec![]);
        assert_eq!(
            bind(array(vec!["k".into(), "f".into()]), none()),
            "TypeError(\"missing a required argument: 'filedata'\",)"
        );
        assert_eq!(
            bind(array(vec![1.into(), 2.into(), 3.into(), 4.into()]), none()),
            "TypeError('too many positional arguments',)"
        );
        assert_eq!(
            bind(
                array(vec!["k".into()]),
                map(vec![("kernel_id".into(), 1.into())])
            ),
            "TypeError(\"multiple values for argument 'kernel_id'\",)"
        );
        assert_eq!(
            bind(
                array(vec!["k".into(), "f".into(), "d".into()]),
                map(vec![("zzz".into(), 1.into())])
            ),
            "TypeError(\"got an unexpected keyword argument 'zzz'\",)"
        );
        assert_eq!(
            bind(5.into(), none()),
            "TypeError('bind() argument after * must be an iterable, not int',)"
        );
        assert_eq!(
            bind(array(vec![]), 5.into()),
            "TypeError('bind() argument after ** must be a mapping, not int',)"
        );
        assert_eq!(
            bind(array(vec![]), map(vec![(5.into(), 1.into())])),
            "TypeError('bind() keywords must be strings',)"
        );
    }

    #[test]
    fn keyword_arguments_take_their_places() {
        let kwargs = map(vec![
            ("filedata".into(), 2.into()),
            ("filename".into(), "f".into()),
        ]);
        let mut bound = Arguments::bind(UPLOAD, array(vec![7.into()]), kwargs).expect("binds");
        assert_eq!(bound.text(), "7");
        assert_eq!(bound.text(), "f");
        assert_eq!(&bound.bytes(&Bytes::new()).expect("zeroes")[..], b"\0\0");
    }

    #[test]
    fn integers_are_converted() {
        for (value, expected) in [
            (ValueRef::from("3"), 3),
            (" 4 ".into(), 4),
            (1.9.into(), 1),
            (ValueRef::Boolean(true), 1),
            (ValueRef::Binary(b"5"), 5),
        ] {
            assert_eq!(one(value).int().expect("a number"), expected);
        }
        assert_eq!(
            message(one("x".into()).int()),
            "Invalid value for argument 'x': \
             ValueError(\"invalid literal for int() with base 10: 'x'\",)"
        );
        assert_eq!(
            message(one(ValueRef::Nil).int()),
            "Invalid value for argument 'x': TypeError(\"int() argument must be a string, \
             a bytes-like object or a number, not 'NoneType'\",)"
        );
    }

    #[test]
    fn maps_may_come_as_pairs() {
        let pairs = array(vec![array(vec!["a".into(), 1.into()])]);
        assert_eq!(one(pairs).dict().expect("pairs").len(), 1);
        assert_eq!(
            message(one(ValueRef::Nil).dict()),
            "Invalid value for argument 'x': TypeError(\"'NoneType' object is not iterable\",)"
        );
        assert_eq!(
            message(one(array(vec![1.into()])).dict()),
            "Invalid value for argument 'x': TypeError('cannot convert dictionary update \
             sequence element #0 to a sequence',)"
        );
        assert_eq!(
            message(one(array(vec![array(vec![1.into()])])).dict()),
            "Invalid value for argument 'x': ValueError('dictionary update sequence element #0 \
             has length 1; 2 is required',)"
        );
    }

    #[test]
    fn bytes_come_as_bin_numbers_or_a_count() {
        let frame = Bytes::from_static(b"\xc4\x01a");
        let data = ValueRef::Binary(&frame[2..]);
        let mut bound = Arguments::bind(&["x"], array(vec![data]), map(vec![])).expect("binds");
        assert_eq!(&bound.bytes(&frame).expect("bin")[..], b"a");
        let numbers = array(vec![1.into(), 255.into()]);
        let octets = one(numbers).bytes(&frame).expect("octets");
        assert_eq!(&octets[..], b"\x01\xff");
        for (value, problem) in [
            (
                ValueRef::from("x"),
                "TypeError('string argument without an encoding',)",
            ),
            ((-1).into(), "ValueError('negative count',)"),
            (
                array(vec![256.into()]),
                "ValueError('bytes must be in range(0, 256)',)",
            ),
            (
                array(vec!["a".into()]),
                "TypeError(\"'str' object cannot be interpreted as an integer\",)",
            ),
            (
                ValueRef::Nil,
                "TypeError(\"cannot convert 'NoneType' object to bytes\",)",
            ),
            (i64::MAX.into(), "MemoryError()"),
        ] {
            let expected = format!("Invalid value for argument 'x': {problem}");
            assert_eq!(message(one(value).bytes(&frame)), expected);
        }
    }

    #[test]
    fn truth_is_pythons() {
        assert!(one("no".into()).truth());
        assert!(!one("".into()).truth());
        assert!(!one(0.into()).truth());
    }

    #[test]
    fn an_empty_run_id_is_refused_and_nil_is_not() {
        assert_eq!(one(ValueRef::Nil).run_id().expect("nil"), None);
        assert_eq!(
            message(one("".into()).run_id()),
            "Invalid value for argument 'x': DataError({0: DataError(blank value is not allowed), \
             1: DataError(value should be None)})"
        );
        assert!(one(5.into()).run_id().is_err());
    }

    #[test]
    fn a_flush_timeout_may_be_any_number() {
        assert_eq!(one(5.into()).seconds().expect("a number"), Some(5.0));
        assert_eq!(one("2.5".into()).seconds().expect("a number"), Some(2.5));
        assert_eq!(
            message(one("x".into()).seconds()),
            "Invalid value for argument 'x': DataError({0: DataError(value can't be converted to \
             float), 1: DataError(value should be None)})"
        );
    }
}
