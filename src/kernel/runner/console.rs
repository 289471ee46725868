//! A run's output as it is shown: bytes to text across record borders, neighbours of one stream joined.

use bytes::Bytes;

use super::wire::{Mark, Record};
use crate::agent::request::ConsoleItem;

/// Decodes UTF-8 that arrives in pieces: split characters are joined, invalid bytes become U+FFFD.
#[derive(Debug, Default)]
pub struct Utf8Joiner {
    /// The beginning of a character whose rest has not arrived: at most three bytes.
    tail: Vec<u8>,
}

impl Utf8Joiner {
    /// Decodes the next piece.
    pub fn push(&mut self, piece: &[u8]) -> String {
        if self.tail.is_empty() {
            return self.decode(piece);
        }
        let mut joined = std::mem::take(&mut self.tail);
        joined.extend_from_slice(piece);
        self.decode(&joined)
    }

    /// Drops an incomplete character at the end of a run.
    pub fn finish(&mut self) {
        self.tail.clear();
    }

    fn decode(&mut self, mut rest: &[u8]) -> String {
        let mut text = String::with_capacity(rest.len());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(length) = error.error_len() else {
                        self.tail = bad.to_vec();
                        return text;
                    };
                    text.push('\u{FFFD}');
                    rest = &bad[length..];
                }
            }
        }
    }
}

/// Output that belongs to one `execute` call: everything up to a mark.
#[derive(Debug, Default)]
pub struct Segment {
    /// Output in order.
    pub console: Vec<ConsoleItem>,
    /// What ended it, once it has.
    pub mark: Option<Mark>,
    /// Bytes held.
    pub bytes: usize,
}

/// What one more item costs besides its text.
const ITEM_COST: usize = 64;

impl Segment {
    /// Appends text of standard output or error; neighbours of the same stream are joined.
    fn append(&mut self, stream: Stream, text: String) {
        if text.is_empty() {
            return;
        }
        self.bytes += text.len();
        match (stream, self.console.last_mut()) {
            (Stream::Out, Some(ConsoleItem::Stdout(last)))
            | (Stream::Err, Some(ConsoleItem::Stderr(last))) => last.push_str(&text),
            (Stream::Out, _) => self.item(ConsoleItem::Stdout(text)),
            (Stream::Err, _) => self.item(ConsoleItem::Stderr(text)),
        }
    }

    fn item(&mut self, item: ConsoleItem) {
        self.bytes += ITEM_COST;
        self.console.push(item);
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.console.is_empty() && self.mark.is_none()
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// Turns a runner's records into console items; one for each runner, because characters may be split across runs.
#[derive(Debug, Default)]
pub struct Console {
    out: Utf8Joiner,
    err: Utf8Joiner,
}

impl Console {
    /// Adds a record to a segment. Records that are no output are dropped.
    pub fn add(&mut self, segment: &mut Segment, record: Record) {
        match record {
            Record::Stdout(data) => self.stream(segment, Stream::Out, &data),
            Record::Stderr(data) => self.stream(segment, Stream::Err, &data),
            Record::Media { mime, data } => {
                segment.bytes += mime.len() + data.len();
                segment.item(ConsoleItem::Media { mime, data });
            }
            Record::Html(text) => {
                segment.bytes += text.len();
                segment.item(ConsoleItem::Html(text));
            }
            Record::Log(text) => {
                segment.bytes += text.len();
                segment.item(ConsoleItem::Log(text));
            }
            Record::Mark(mark) => self.mark(segment, mark),
            Record::Completion(_) | Record::Service(_) | Record::Ignored => {}
        }
    }

    /// Forgets the output of no run, but keeps the characters' borders in step.
    pub fn discard(&mut self, record: Record) {
        self.add(&mut Segment::default(), record);
    }

    fn stream(&mut self, segment: &mut Segment, stream: Stream, data: &Bytes) {
        let text = match stream {
            Stream::Out => self.out.push(data),
            Stream::Err => self.err.push(data),
        };
        segment.append(stream, text);
    }

    fn mark(&mut self, segment: &mut Segment, mark: Mark) {
        if matches!(mark, Mark::BuildFinished(_) | Mark::Finished { .. }) {
            self.out.finish();
            self.err.finish();
        }
        segment.bytes += ITEM_COST;
        segment.mark = Some(mark);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(records: impl IntoIterator<Item = Record>) -> Vec<ConsoleItem> {
        let mut console = Console::default();
        let mut segment = Segment::default();
        for record in records {
            console.add(&mut segment, record);
        }
        segment.console
    }

    fn out(data: &'static [u8]) -> Record {
        Record::Stdout(Bytes::from_static(data))
    }

    fn err(data: &'static [u8]) -> Record {
        Record::Stderr(Bytes::from_static(data))
    }

    #[test]
    fn neighbours_of_one_stream_are_joined_and_others_split_them() {
        let items = merged([
            out(b"a"),
            out(b"b"),
            err(b"e1"),
            err(b"e2"),
            Record::Ignored,
            out(b"c"),
            Record::Html("<p>".to_owned()),
            Record::Log("l".to_owned()),
        ]);
        assert_eq!(
            items,
            [
                ConsoleItem::Stdout("ab".to_owned()),
                ConsoleItem::Stderr("e1e2".to_owned()),
                ConsoleItem::Stdout("c".to_owned()),
                ConsoleItem::Html("<p>".to_owned()),
                ConsoleItem::Log("l".to_owned()),
            ]
        );
    }

    #[test]
    fn a_character_split_across_streams_is_joined_in_its_own() {
        let items = merged([out(b"\xed\x95"), err(b"e"), out(b"\x9c")]);
        assert_eq!(
            items,
            [
                ConsoleItem::Stderr("e".to_owned()),
                ConsoleItem::Stdout("한".to_owned())
            ]
        );
    }

    #[test]
    fn an_incomplete_tail_is_dropped_at_the_end_of_a_run() {
        let finished = Record::Mark(Mark::Finished {
            exit_code: Some(0),
            with_files: true,
        });
        let items = merged([out(b"a\xed\x95"), finished, out(b"\x9cb")]);
        assert_eq!(items, [ConsoleItem::Stdout("a\u{FFFD}b".to_owned())]);
    }

    proptest! {
        #[test]
        fn decoding_in_pieces_equals_decoding_at_once(data: Vec<u8>, cuts: Vec<usize>) {
            let mut joiner = Utf8Joiner::default();
            let mut text = String::new();
            let mut rest = data.as_slice();
            for cut in cuts {
                let (piece, later) = rest.split_at(cut % (rest.len() + 1));
                text.push_str(&joiner.push(piece));
                rest = later;
            }
            text.push_str(&joiner.push(rest));
            let whole = String::from_utf8_lossy(&data).into_owned();
            // The end may hold an incomplete character, which only the whole shows.
            let cut = whole.strip_suffix('\u{FFFD}');
            prop_assert!(whole == text || cut == Some(text.as_str()));
        }
    }
}
