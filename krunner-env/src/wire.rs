//! Ops and records: what the agent and krunner say to each other, as two frames each (19.03.3 agent and runner).

use std::fmt::Write as _;

use serde::Deserialize;
use zmtp::Message;

use crate::plan::Phase;

/// What the agent asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A step of a batch run, with its command.
    Batch(Phase, String),
    /// A query.
    Code(String),
    /// A line for who waits for input.
    Input(String),
    /// Completion at the end of this line.
    Complete(String),
    /// Interrupt the run.
    Interrupt,
    /// Is anybody there?
    Status,
    /// Start the service of this name, or: what is wrong with the request.
    StartService(Result<String, String>),
}

impl Op {
    /// Reads a message. `None`: not two frames, or an op that nobody knows; these are passed over (26.x).
    /// Bytes that are not UTF-8 are replaced.
    pub(crate) fn read(message: &Message) -> Option<Self> {
        let [op, payload] = message.frames() else {
            return None;
        };
        let text = || String::from_utf8_lossy(payload).into_owned();
        Some(match op.as_ref() {
            b"clean" => Self::Batch(Phase::Clean, text()),
            b"build" => Self::Batch(Phase::Build, text()),
            b"exec" => Self::Batch(Phase::Exec, text()),
            b"code" => Self::Code(text()),
            b"input" => Self::Input(text()),
            b"complete" => Self::Complete(line_to_complete(payload)),
            b"interrupt" => Self::Interrupt,
            b"status" => Self::Status,
            b"start-service" => Self::StartService(service_name(payload)),
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
struct CompleteRequest {
    #[serde(default)]
    code: String,
    line: Option<String>,
}

/// The client's `line` is the text before the cursor; without it the code itself is. A broken request completes nothing.
fn line_to_complete(payload: &[u8]) -> String {
    let request: Option<CompleteRequest> = serde_json::from_slice(payload).ok();
    request
        .map(|request| {
            request
                .line
                .filter(|line| !line.is_empty())
                .unwrap_or(request.code)
        })
        .unwrap_or_default()
}

#[derive(Deserialize)]
struct ServiceRequest {
    name: String,
}

fn service_name(payload: &[u8]) -> Result<String, String> {
    let request: Result<ServiceRequest, _> = serde_json::from_slice(payload);
    request
        .map(|request| request.name)
        .map_err(|error| format!("the request is not understood: {error}"))
}

/// What the runner tells the agent.
#[derive(Debug, PartialEq)]
pub(crate) enum Record {
    /// Output, any bytes.
    Stdout(Vec<u8>),
    /// Output, any bytes; also the runner's own sentences.
    Stderr(Vec<u8>),
    /// A picture or the like: MIME type, and data as text.
    Media(String, String),
    /// HTML, as it is.
    Html(Vec<u8>),
    /// A query waits for input; true: for a password.
    QueryWaits(bool),
    /// A batch program waits for input.
    BatchWaits,
    /// The end of a batch step or a query, with its exit code. `None`: a query.
    Finished(Option<Phase>, i32),
    /// Completions.
    Completion(Vec<String>),
    /// A service could not be started, and why.
    ServiceFailed(String),
    /// Alive since this second of the monotonic clock.
    Status(f64),
}

impl Record {
    /// A sentence of the runner itself.
    pub(crate) fn note(text: &str) -> Self {
        Self::Stderr(format!("krunner: {text}\n").into_bytes())
    }
}

impl From<Record> for Message {
    fn from(record: Record) -> Self {
        let (kind, body) = match record {
            Record::Stdout(data) => ("stdout", data),
            Record::Stderr(data) => ("stderr", data),
            Record::Media(mime, data) => (
                "media",
                format!("{{\"type\": {}, \"data\": {}}}", json(&mime), json(&data)).into_bytes(),
            ),
            Record::Html(data) => ("html", data),
            Record::QueryWaits(password) => (
                "waiting-input",
                format!("{{\"is_password\": {password}}}").into_bytes(),
            ),
            Record::BatchWaits => ("waiting-input", Vec::new()),
            Record::Finished(phase, code) => (
                end_of(phase),
                format!("{{\"exitCode\": {code}}}").into_bytes(),
            ),
            Record::Completion(list) => ("completion", json_list(&list).into_bytes()),
            Record::ServiceFailed(reason) => (
                "service-result",
                format!("{{\"status\": \"failed\", \"error\": {}}}", json(&reason)).into_bytes(),
            ),
            Record::Status(started_at) => ("status", status_map(started_at)),
        };
        Self::from([kind.as_bytes().to_vec(), body])
    }
}

fn end_of(phase: Option<Phase>) -> &'static str {
    match phase {
        Some(Phase::Clean) => "clean-finished",
        Some(Phase::Build) => "build-finished",
        Some(Phase::Exec) | None => "finished",
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_list(items: &[String]) -> String {
    let mut list = String::from("[");
    for (index, item) in items.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(list, "{comma}{}", json(item)).expect("a String takes everything");
    }
    list + "]"
}

/// `{"started_at": f64}` in msgpack.
fn status_map(started_at: f64) -> Vec<u8> {
    let mut map = b"\x81\xaastarted_at\xcb".to_vec();
    map.extend(started_at.to_be_bytes());
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(record: Record) -> String {
        let message = Message::from(record);
        let [kind, body] = message.frames() else {
            panic!("not two frames")
        };
        format!(
            "{} {}",
            String::from_utf8_lossy(kind),
            String::from_utf8_lossy(body)
        )
    }

    fn op(frames: &[&str]) -> Option<Op> {
        Op::read(
            &frames
                .iter()
                .map(|frame| frame.as_bytes().to_vec())
                .collect(),
        )
    }

    #[test]
    fn records_have_the_bytes_of_1903() {
        assert_eq!(
            body(Record::Finished(None, -2)),
            r#"finished {"exitCode": -2}"#
        );
        assert_eq!(
            body(Record::Finished(Some(Phase::Clean), 0)),
            r#"clean-finished {"exitCode": 0}"#
        );
        assert_eq!(
            body(Record::QueryWaits(true)),
            r#"waiting-input {"is_password": true}"#
        );
        assert_eq!(body(Record::BatchWaits), "waiting-input ");
        assert_eq!(
            body(Record::Completion(vec!["a\"b".into(), "c".into()])),
            r#"completion ["a\"b", "c"]"#
        );
        assert_eq!(
            body(Record::ServiceFailed("x".into())),
            r#"service-result {"status": "failed", "error": "x"}"#
        );
        assert_eq!(
            body(Record::Media("image/png".into(), "data:,\n".into())),
            r#"media {"type": "image/png", "data": "data:,\n"}"#
        );
    }

    #[test]
    fn status_is_a_msgpack_map() {
        let message = Message::from(Record::Status(1.5));
        assert_eq!(
            message.frames()[1].as_ref(),
            b"\x81\xaastarted_at\xcb\x3f\xf8\0\0\0\0\0\0"
        );
    }

    #[test]
    fn messages_of_other_than_two_frames_and_unknown_ops_are_passed_over() {
        assert_eq!(op(&["exec"]), None);
        assert_eq!(op(&["exec", "a", "b"]), None);
        assert_eq!(op(&["frobnicate", ""]), None);
        assert_eq!(op(&["exec", "a"]), Some(Op::Batch(Phase::Exec, "a".into())));
    }

    #[test]
    fn broken_json_is_an_answerable_op() {
        assert_eq!(op(&["complete", "{"]), Some(Op::Complete(String::new())));
        assert!(matches!(
            op(&["start-service", "[]"]),
            Some(Op::StartService(Err(_)))
        ));
        assert_eq!(
            op(&["start-service", r#"{"name":"x","port":1}"#]),
            Some(Op::StartService(Ok("x".into())))
        );
        assert_eq!(
            op(&["complete", r#"{"code":"impo","line":"im"}"#]),
            Some(Op::Complete("im".into()))
        );
    }
}
