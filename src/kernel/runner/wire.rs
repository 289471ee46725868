//! The runner's messages in both directions: two frames each, a type and its data (19.03 `kernel.py`, `KernelRunner`).

use bytes::Bytes;
use serde_json::{Map, Value, json};
use zmtp::Message;

/// Longer data of one record is cut at this many bytes.
pub const RECORD_LIMIT: usize = 10 * 1024 * 1024;

/// What the agent tells the runner.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The clean step of a batch run.
    Clean(String),
    /// Its build step.
    Build(String),
    /// Its execution step.
    Exec(String),
    /// Source text for the interpreter.
    Code(String),
    /// Text for a program that waits for input.
    Input(String),
    /// Interrupts what runs.
    Interrupt,
    /// Asks for completions.
    Complete {
        /// Code up to the cursor.
        code: String,
        /// Further options, as the client gives them.
        options: Map<String, Value>,
    },
    /// Starts a service program.
    StartService {
        /// Name.
        name: String,
        /// Port inside.
        port: u16,
        /// `tcp`, `http` or `pty`.
        protocol: String,
        /// Further options, as the client gives them.
        options: Map<String, Value>,
    },
}

impl Op {
    /// The message's two frames.
    #[must_use]
    pub fn encode(&self) -> Message {
        let (name, payload) = match self {
            Self::Clean(text) => ("clean", text.clone()),
            Self::Build(text) => ("build", text.clone()),
            Self::Exec(text) => ("exec", text.clone()),
            Self::Code(text) => ("code", text.clone()),
            Self::Input(text) => ("input", text.clone()),
            Self::Interrupt => ("interrupt", String::new()),
            Self::Complete { code, options } => {
                let mut object = Map::new();
                object.insert("code".to_owned(), Value::from(code.as_str()));
                object.extend(options.clone());
                ("complete", Value::Object(object).to_string())
            }
            Self::StartService {
                name,
                port,
                protocol,
                options,
            } => {
                let object =
                    json!({"name": name, "port": port, "protocol": protocol, "options": options});
                ("start-service", object.to_string())
            }
        };
        Message::from([Bytes::from_static(name.as_bytes()), Bytes::from(payload)])
    }
}

/// What the runner tells the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Bytes of standard output; may end within a character.
    Stdout(Bytes),
    /// Bytes of standard error; may end within a character.
    Stderr(Bytes),
    /// A picture or the like.
    Media {
        /// MIME type.
        mime: String,
        /// Data as text.
        data: String,
    },
    /// HTML text; also a `media` record that is not the JSON it should be (the stock runner sends raw HTML so).
    Html(String),
    /// A line of the runner's log.
    Log(String),
    /// A step ended, or the program waits.
    Mark(Mark),
    /// Completions.
    Completion(Value),
    /// Answer to a service request.
    Service(Value),
    /// Nothing for a run.
    Ignored,
}

/// What ends the output of one `execute` call.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// The clean step ended, with this exit code.
    CleanFinished(Option<i64>),
    /// The build step ended.
    BuildFinished(Option<i64>),
    /// The run ended.
    Finished {
        /// Exit code.
        exit_code: Option<i64>,
        /// Whether files in `.output` are to be reported; commands of the terminal say no.
        with_files: bool,
    },
    /// The program waits for input, with these options.
    WaitingInput(Value),
}

impl Record {
    /// Reads a message. What cannot be understood becomes [`Record::Ignored`]: one bad record must not end the rest.
    #[must_use]
    pub fn decode(message: &Message) -> Self {
        let [kind, data] = message.frames() else {
            return Self::Ignored;
        };
        let data = data.slice(..data.len().min(RECORD_LIMIT));
        match kind.as_ref() {
            b"stdout" => Self::Stdout(data),
            b"stderr" => Self::Stderr(data),
            b"media" => media(&data),
            b"html" => Self::Html(lossy(&data)),
            b"log" => Self::Log(lossy(&data)),
            b"clean-finished" => Self::Mark(Mark::CleanFinished(exit_code(&object(&data)))),
            b"build-finished" => Self::Mark(Mark::BuildFinished(exit_code(&object(&data)))),
            b"finished" => {
                let object = object(&data);
                Self::Mark(Mark::Finished {
                    exit_code: exit_code(&object),
                    with_files: object.get("upload_output_files") != Some(&Value::Bool(false)),
                })
            }
            b"waiting-input" => Self::Mark(Mark::WaitingInput(Value::Object(object(&data)))),
            b"completion" => json_or_ignored(&data, Self::Completion),
            b"service-result" => json_or_ignored(&data, Self::Service),
            _ => Self::Ignored,
        }
    }
}

fn lossy(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

fn object(data: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(data) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn exit_code(object: &Map<String, Value>) -> Option<i64> {
    object.get("exitCode").and_then(Value::as_i64)
}

fn json_or_ignored(data: &[u8], make: fn(Value) -> Record) -> Record {
    serde_json::from_slice(data).map_or(Record::Ignored, make)
}

fn media(data: &[u8]) -> Record {
    let object = object(data);
    let (Some(mime), Some(content)) = (
        object.get("type").and_then(Value::as_str),
        object.get("data"),
    ) else {
        return Record::Html(lossy(data));
    };
    let data = match content {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Record::Media {
        mime: mime.to_owned(),
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: &str, data: impl Into<Bytes>) -> Record {
        Record::decode(&Message::new(vec![
            Bytes::from(kind.to_owned()),
            data.into(),
        ]))
    }

    #[test]
    fn an_op_has_two_frames() {
        let message = Op::Interrupt.encode();
        assert_eq!(message.frames(), [Bytes::from("interrupt"), Bytes::new()]);
        let message = Op::StartService {
            name: "jupyter".to_owned(),
            port: 8080,
            protocol: "http".to_owned(),
            options: Map::new(),
        }
        .encode();
        let expected = r#"{"name":"jupyter","port":8080,"protocol":"http","options":{}}"#;
        assert_eq!(message.frames()[1], expected);
    }

    #[test]
    fn completion_options_stand_beside_the_code() {
        let mut options = Map::new();
        options.insert("row".to_owned(), Value::from(0));
        let op = Op::Complete {
            code: "impo".to_owned(),
            options,
        };
        assert_eq!(op.encode().frames()[1], r#"{"code":"impo","row":0}"#);
    }

    #[test]
    fn media_that_is_not_json_is_html_text() {
        assert_eq!(
            decode("media", "<b>b</b>"),
            Record::Html("<b>b</b>".to_owned())
        );
        assert_eq!(
            decode("media", r#"{"type":"image/png","data":"x"}"#),
            Record::Media {
                mime: "image/png".to_owned(),
                data: "x".to_owned()
            }
        );
    }

    #[test]
    fn an_empty_waiting_input_has_empty_options() {
        assert_eq!(
            decode("waiting-input", ""),
            Record::Mark(Mark::WaitingInput(json!({})))
        );
    }

    #[test]
    fn a_finished_without_a_code_has_none() {
        let with_files = true;
        let exit_code = None;
        assert_eq!(
            decode("finished", ""),
            Record::Mark(Mark::Finished {
                exit_code,
                with_files
            })
        );
        let Record::Mark(Mark::Finished { with_files, .. }) =
            decode("finished", r#"{"upload_output_files": false}"#)
        else {
            panic!("a finished record is a mark");
        };
        assert!(!with_files);
    }

    #[test]
    fn data_is_cut_at_ten_mebibytes() {
        let Record::Stdout(data) = decode("stdout", vec![b'x'; RECORD_LIMIT + 1]) else {
            panic!("stdout stays stdout");
        };
        assert_eq!(data.len(), RECORD_LIMIT);
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        assert_eq!(decode("nonsense", "x"), Record::Ignored);
        assert_eq!(decode("completion", "{"), Record::Ignored);
        assert_eq!(Record::decode(&Message::from(["stdout"])), Record::Ignored);
        assert_eq!(
            Record::decode(&Message::from(["stdout", "a", "b"])),
            Record::Ignored
        );
    }
}
