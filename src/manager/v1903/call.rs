//! The methods of the 19.03 agent: name and arguments become a [`Request`] and the form of its result.

use std::time::Duration;

use bytes::Bytes;
use rmpv::{Value, ValueRef};

use super::arguments::Arguments;
use super::frame::{self, BadCall};
use super::reply::Shape;
use super::wire_error::WireError;
use super::{kernel_config, python};
use crate::agent::request::{Execute, ExecuteMode, KernelId, Request};

/// What to do about a call.
#[derive(Debug)]
pub enum Decoded {
    /// Answer with this, at once.
    Answer(Result<Value, WireError>),
    /// Ask the node, and give the result this form.
    Ask(Request, Shape),
}

type Json = serde_json::Map<String, serde_json::Value>;

/// Decodes a call.
///
/// # Errors
/// [`BadCall`] when the arguments are not msgpack; every other problem is an answer.
pub fn decode(call: &frame::Call) -> Result<Decoded, BadCall> {
    let args = frame::decode("arguments", &call.args)?;
    let kwargs = frame::decode("keyword arguments", &call.kwargs)?;
    let Some(parameters) = parameters(&call.method) else {
        return Ok(Decoded::Answer(Err(WireError::not_found(&call.method))));
    };
    let decoded = Arguments::bind(parameters, args, kwargs)
        .and_then(|arguments| method(&call.method, arguments, &call.args));
    Ok(decoded.unwrap_or_else(|error| Decoded::Answer(Err(error))))
}

/// The parameters of a method; `None` when there is no such method.
fn parameters(method: &str) -> Option<&'static [&'static str]> {
    Some(match method {
        "ping" => &["msg"],
        "ping_kernel" | "destroy_kernel" | "interrupt_kernel" | "get_logs" | "refresh_idle" => {
            &["kernel_id"]
        }
        "create_kernel" => &["kernel_id", "config"],
        "get_completions" => &["kernel_id", "text", "opts"],
        "restart_kernel" => &["kernel_id", "new_config"],
        "execute" => &[
            "api_version",
            "kernel_id",
            "run_id",
            "mode",
            "code",
            "opts",
            "flush_timeout",
        ],
        "start_service" => &["kernel_id", "service", "opts"],
        "upload_file" => &["kernel_id", "filename", "filedata"],
        "download_file" => &["kernel_id", "filepath"],
        "list_files" => &["kernel_id", "path"],
        "shutdown_agent" => &["terminate_kernels"],
        "clean_all_kernels" => &["reason"],
        "reset_agent" => &[],
        _ => return None,
    })
}

fn method(name: &str, mut args: Arguments<'_>, frame: &Bytes) -> Result<Decoded, WireError> {
    match name {
        "ping" => return answer(args.text().into()),
        "shutdown_agent" => {
            args.truth();
            return answer(Value::Nil);
        }
        "reset_agent" => return ask_all("agent-reset".to_owned()),
        "clean_all_kernels" => return ask_all(args.text()),
        "execute" => return execute(args),
        _ => {}
    }
    let id = args.text();
    let kernel = match KernelId::parse(&id) {
        Ok(kernel) => kernel,
        Err(invalid) => return invalid_id(name, id, invalid.to_string()),
    };
    let (request, shape) = match name {
        "ping_kernel" => (Request::PingKernel { kernel }, Shape::Nil),
        "refresh_idle" => (Request::RefreshIdle { kernel }, Shape::Nil),
        "interrupt_kernel" => (Request::InterruptKernel { kernel }, Shape::Nil),
        "get_logs" => (Request::GetLogs { kernel }, Shape::Plain),
        "create_kernel" => {
            let config = Box::new(kernel_config::decode(&args.dict()?)?);
            (Request::CreateKernel { kernel, config }, Shape::Plain)
        }
        "restart_kernel" => {
            let config = Box::new(kernel_config::decode(&args.dict()?)?);
            (Request::RestartKernel { kernel, config }, Shape::Restarted)
        }
        "get_completions" => {
            let (text, options) = (args.text(), json_map(&args.dict()?));
            let request = Request::GetCompletions {
                kernel,
                text,
                options,
            };
            (request, Shape::Nil)
        }
        "start_service" => {
            let (service, options) = (args.text(), json_map(&args.dict()?));
            let request = Request::StartService {
                kernel,
                service,
                options,
            };
            (request, Shape::Plain)
        }
        "upload_file" => {
            let (filename, data) = (args.text(), args.bytes(frame)?);
            let request = Request::UploadFile {
                kernel,
                filename,
                data,
            };
            (request, Shape::Nil)
        }
        "download_file" => {
            let filepath = args.text();
            (Request::DownloadFile { kernel, filepath }, Shape::Plain)
        }
        "list_files" => {
            let path = args.text();
            (Request::ListFiles { kernel, path }, Shape::Plain)
        }
        "destroy_kernel" => {
            let reason = "user-requested".to_owned();
            (Request::DestroyKernel { kernel, reason }, Shape::Plain)
        }
        other => return Err(WireError::not_found(other)),
    };
    Ok(Decoded::Ask(request, shape))
}

fn answer(value: Value) -> Result<Decoded, WireError> {
    Ok(Decoded::Answer(Ok(value)))
}

fn ask_all(reason: String) -> Result<Decoded, WireError> {
    Ok(Decoded::Ask(Request::DestroyAll { reason }, Shape::Nil))
}

/// A text that can name no kernel is treated as an unknown one where that does not create anything.
fn invalid_id(method: &str, id: String, problem: String) -> Result<Decoded, WireError> {
    match method {
        "ping_kernel" | "refresh_idle" | "destroy_kernel" => answer(Value::Nil),
        "create_kernel" | "restart_kernel" => Err(WireError::one("builtins.ValueError", problem)),
        _ => Err(WireError::one("builtins.KeyError", id)),
    }
}

fn execute(mut args: Arguments<'_>) -> Result<Decoded, WireError> {
    let api_version = args.int()?;
    let id = args.text();
    let run = args.run_id()?;
    let (mode, code) = (args.text(), args.text());
    let options = args.dict()?;
    let flush_timeout = args.seconds()?.map(duration);
    let shape = match api_version {
        1 => Shape::Streams,
        2 | 3 => Shape::Console,
        other => {
            let text = format!("API version {other} is not spoken, only 1, 2 and 3");
            return Err(WireError::one("builtins.ValueError", text));
        }
    };
    let kernel = KernelId::parse(&id)
        .map_err(|invalid| WireError::one("builtins.RuntimeError", invalid.to_string()))?;
    let step = |name| step(&options, name);
    let mode = match mode.as_str() {
        "query" => ExecuteMode::Query(code),
        "batch" => ExecuteMode::Batch {
            clean: step("clean"),
            build: step("build"),
            exec: step("exec"),
        },
        "input" => ExecuteMode::Input(code),
        _ => ExecuteMode::Continue,
    };
    let execute = Execute {
        kernel,
        run,
        mode,
        flush_timeout,
    };
    Ok(Decoded::Ask(Request::Execute(Box::new(execute)), shape))
}

/// One command of a batch; absent and nil are empty.
fn step(options: &[(ValueRef<'_>, ValueRef<'_>)], name: &str) -> String {
    options
        .iter()
        .find(|(key, _)| matches!(key, ValueRef::String(key) if key.as_str() == Some(name)))
        .filter(|(_, value)| !matches!(value, ValueRef::Nil))
        .map(|(_, value)| python::text(value))
        .unwrap_or_default()
}

/// Seconds as a duration; nothing below zero, and a day for what is longer or no number.
fn duration(seconds: f64) -> Duration {
    const DAY: f64 = 86_400.0;
    let seconds = if seconds.is_nan() { DAY } else { seconds };
    Duration::from_secs_f64(seconds.clamp(0.0, DAY))
}

fn json_map(pairs: &[(ValueRef<'_>, ValueRef<'_>)]) -> Json {
    pairs
        .iter()
        .map(|(key, value)| (python::text(key), json(value)))
        .collect()
}

/// The value as JSON; bytes become text.
fn json(value: &ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Nil => serde_json::Value::Null,
        ValueRef::Boolean(value) => (*value).into(),
        ValueRef::Integer(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_u64().into(),
        },
        ValueRef::F32(number) => (*number).into(),
        ValueRef::F64(number) => (*number).into(),
        ValueRef::Array(items) => items.iter().map(json).collect(),
        ValueRef::Map(pairs) => json_map(pairs).into(),
        ValueRef::Binary(data) | ValueRef::Ext(_, data) => String::from_utf8_lossy(data).into(),
        ValueRef::String(_) => python::text(value).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(method: &str, args: Value) -> Decoded {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &args).expect("a Vec takes all");
        let call = frame::Call {
            leading: Vec::new(),
            id: 1,
            method: method.to_owned(),
            args: bytes.into(),
            kwargs: Bytes::from_static(b"\x80"),
        };
        decode(&call).expect("msgpack")
    }

    fn list(items: Vec<Value>) -> Value {
        Value::Array(items)
    }

    fn execution(mode: &str, api: u8, timeout: Value) -> Decoded {
        let options = Value::Map(vec![
            ("build".into(), "make".into()),
            ("exec".into(), Value::Nil),
        ]);
        decoded(
            "execute",
            list(vec![
                api.into(),
                "k".into(),
                Value::Nil,
                mode.into(),
                "code".into(),
                options,
                timeout,
            ]),
        )
    }

    const METHODS: [&str; 17] = [
        "ping",
        "ping_kernel",
        "create_kernel",
        "destroy_kernel",
        "interrupt_kernel",
        "get_completions",
        "get_logs",
        "restart_kernel",
        "execute",
        "start_service",
        "upload_file",
        "download_file",
        "list_files",
        "refresh_idle",
        "shutdown_agent",
        "reset_agent",
        "clean_all_kernels",
    ];

    /// Any value that a caller could send.
    fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            prop_oneof!["image", "registry", "resource_slots", "mounts", "k-1"]
                .prop_map(Value::from),
            any::<Vec<u8>>().prop_map(Value::Binary),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..5).prop_map(Value::Map),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn no_arguments_make_a_method_panic(
            args in proptest::collection::vec(any_value(), 0..8),
        ) {
            for method in METHODS {
                let known = decoded(method, list(args.clone()));
                if let Decoded::Answer(Err(error)) = known {
                    proptest::prop_assert!(!error.repr().starts_with("NotFoundError"));
                }
            }
        }
    }

    #[test]
    fn modes_say_what_is_sent_to_the_runner() {
        let batch = ExecuteMode::Batch {
            clean: String::new(),
            build: "make".into(),
            exec: String::new(),
        };
        for (mode, expected) in [
            ("query", ExecuteMode::Query("code".into())),
            ("batch", batch),
            ("input", ExecuteMode::Input("code".into())),
            ("continue", ExecuteMode::Continue),
            ("whatever", ExecuteMode::Continue),
        ] {
            let Decoded::Ask(Request::Execute(execute), shape) = execution(mode, 3, 2.into())
            else {
                panic!("{mode} is an execution");
            };
            assert_eq!(execute.mode, expected);
            assert_eq!(execute.flush_timeout, Some(Duration::from_secs(2)));
            assert_eq!((execute.run.as_deref(), shape), (None, Shape::Console));
        }
    }

    #[test]
    fn other_api_versions_are_refused_before_anything_happens() {
        let Decoded::Ask(_, Shape::Streams) = execution("query", 1, Value::Nil) else {
            panic!("version 1 is spoken");
        };
        for version in [0, 4] {
            let Decoded::Answer(Err(error)) = execution("query", version, Value::Nil) else {
                panic!("version {version} is not spoken");
            };
            assert!(error.repr().starts_with("ValueError("));
        }
    }

    #[test]
    fn odd_time_outs_do_no_harm() {
        for timeout in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let Decoded::Ask(Request::Execute(_), _) = execution("query", 2, timeout.into()) else {
                panic!("{timeout} is taken");
            };
        }
    }

    #[test]
    fn a_text_that_names_no_kernel_is_an_unknown_kernel() {
        let call = |method| decoded(method, list(vec!["../x".into()]));
        for method in ["destroy_kernel", "refresh_idle", "ping_kernel"] {
            assert!(matches!(call(method), Decoded::Answer(Ok(Value::Nil))));
        }
        let Decoded::Answer(Err(error)) = call("get_logs") else {
            panic!("there are no logs");
        };
        assert_eq!(error.repr(), "KeyError('../x',)");
    }

    #[test]
    fn every_method_of_the_specification_is_known() {
        for (method, args) in [
            ("ping_kernel", 1),
            ("destroy_kernel", 1),
            ("interrupt_kernel", 1),
            ("get_logs", 1),
            ("refresh_idle", 1),
            ("reset_agent", 0),
            ("clean_all_kernels", 1),
            ("download_file", 2),
            ("list_files", 2),
        ] {
            let args = vec!["k".into(); args];
            assert!(matches!(decoded(method, list(args)), Decoded::Ask(..)));
        }
        let opts = || Value::Map(Vec::new());
        for method in ["get_completions", "start_service"] {
            let args = list(vec!["k".into(), "x".into(), opts()]);
            assert!(matches!(decoded(method, args), Decoded::Ask(..)));
        }
        let down = decoded("shutdown_agent", list(vec![true.into()]));
        assert!(matches!(down, Decoded::Answer(Ok(Value::Nil))));
        let Decoded::Answer(Err(error)) = decoded("hello", list(vec![])) else {
            panic!("hello is of another generation");
        };
        assert_eq!(error.repr(), "NotFoundError('hello',)");
    }
}
