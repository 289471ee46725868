//! The results of calls as the 19.03 manager reads them.

use rmpv::Value;

use crate::agent::request::{
    ConsoleItem, Created, FileListing, Reply, RunResult, RunStatus, ServicePort,
};
use crate::stats::KernelStats;

/// Which form a call's result has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// nil, whatever the node says (Q3, Q4).
    Nil,
    /// As the reply suggests.
    Plain,
    /// `restart_kernel`: what was created, without what the manager knows.
    Restarted,
    /// `execute` of API version 1: one text for each stream.
    Streams,
    /// `execute` of API version 2 and 3: console items in order.
    Console,
}

/// The result's value; `None` if the run was cancelled.
pub fn encode(reply: Reply, shape: Shape) -> Option<Value> {
    Some(match (shape, reply) {
        (_, Reply::Cancelled) => return None,
        (Shape::Nil, _) | (_, Reply::Done | Reply::Destroyed(None)) => Value::Nil,
        (_, Reply::Text(text)) => text.into(),
        (Shape::Restarted, Reply::Created(created)) => restarted(*created),
        (_, Reply::Created(created)) => created_map(*created),
        (_, Reply::Destroyed(Some(stats))) => stats_map(&stats),
        (_, Reply::Logs(logs)) => map([("logs", logs.into())]),
        (Shape::Streams, Reply::Run(run)) => run_map(*run, streams),
        (_, Reply::Run(run)) => run_map(*run, console),
        (_, Reply::Json(json)) => json_value(json),
        (_, Reply::Archive(data)) => Value::Binary(data.into()),
        (_, Reply::Files(files)) => listing(files),
    })
}

/// A map in the order of the pairs.
pub fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())
}

fn created_map(created: Created) -> Value {
    map([
        ("id", created.kernel.as_str().into()),
        ("kernel_host", created.host.into()),
        ("repl_in_port", created.repl_in_port.into()),
        ("repl_out_port", created.repl_out_port.into()),
        ("stdin_port", created.stdin_port.into()),
        ("stdout_port", created.stdout_port.into()),
        ("service_ports", services(created.services)),
        ("container_id", created.container.into()),
        ("resource_spec", created.resource_spec.into()),
    ])
}

fn restarted(created: Created) -> Value {
    map([
        ("container_id", created.container.into()),
        ("repl_in_port", created.repl_in_port.into()),
        ("repl_out_port", created.repl_out_port.into()),
        ("stdin_port", created.stdin_port.into()),
        ("stdout_port", created.stdout_port.into()),
        ("service_ports", services(created.services)),
    ])
}

fn services(services: Vec<ServicePort>) -> Value {
    let service = |port: ServicePort| {
        map([
            ("name", port.name.into()),
            ("protocol", port.protocol.into()),
            ("container_port", port.container_port.into()),
            ("host_port", port.host_port.into()),
        ])
    };
    Value::Array(services.into_iter().map(service).collect())
}

fn stats_map(stats: &KernelStats) -> Value {
    map([
        ("precpu_used", stats.precpu_used.into()),
        ("cpu_used", stats.cpu_used.into()),
        ("precpu_system_used", stats.precpu_system_used.into()),
        ("cpu_system_used", stats.cpu_system_used.into()),
        ("mem_max_bytes", stats.mem_max_bytes.into()),
        ("mem_cur_bytes", stats.mem_cur_bytes.into()),
        ("net_rx_bytes", stats.net_rx_bytes.into()),
        ("net_tx_bytes", stats.net_tx_bytes.into()),
        ("io_read_bytes", stats.io_read_bytes.into()),
        ("io_write_bytes", stats.io_write_bytes.into()),
        ("io_max_scratch_size", stats.io_max_scratch_size.into()),
        ("io_cur_scratch_size", stats.io_cur_scratch_size.into()),
    ])
}

fn run_map(run: RunResult, output: fn(Vec<ConsoleItem>) -> Vec<(Value, Value)>) -> Value {
    let status = match run.status {
        RunStatus::Continued => "continued",
        RunStatus::CleanFinished => "clean-finished",
        RunStatus::BuildFinished => "build-finished",
        RunStatus::WaitingInput => "waiting-input",
        RunStatus::Finished => "finished",
    };
    let file = |(name, url): (String, String)| map([("name", name.into()), ("url", url.into())]);
    let files = run.files.into_iter().map(file).collect();
    let mut pairs: Vec<(Value, Value)> = vec![
        ("runId".into(), run.run.into()),
        ("status".into(), status.into()),
        (
            "exitCode".into(),
            run.exit_code.map_or(Value::Nil, Value::from),
        ),
        ("options".into(), run.options.map_or(Value::Nil, json_value)),
    ];
    pairs.extend(output(run.console));
    pairs.push(("files".into(), Value::Array(files)));
    Value::Map(pairs)
}

fn console(items: Vec<ConsoleItem>) -> Vec<(Value, Value)> {
    let item = |item| {
        let (kind, value): (&str, Value) = match item {
            ConsoleItem::Stdout(text) => ("stdout", text.into()),
            ConsoleItem::Stderr(text) => ("stderr", text.into()),
            ConsoleItem::Media { mime, data } => ("media", media(mime, data)),
            ConsoleItem::Html(text) => ("html", text.into()),
            ConsoleItem::Log(text) => ("log", text.into()),
        };
        Value::Array(vec![kind.into(), value])
    };
    let items = items.into_iter().map(item).collect();
    vec![("console".into(), Value::Array(items))]
}

fn streams(items: Vec<ConsoleItem>) -> Vec<(Value, Value)> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (mut pictures, mut html) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            ConsoleItem::Stdout(text) => stdout.push_str(&text),
            ConsoleItem::Stderr(text) => stderr.push_str(&text),
            ConsoleItem::Media { mime, data } => pictures.push(media(mime, data)),
            ConsoleItem::Html(text) => html.push(text.into()),
            ConsoleItem::Log(_) => {}
        }
    }
    vec![
        ("stdout".into(), stdout.into()),
        ("stderr".into(), stderr.into()),
        ("media".into(), Value::Array(pictures)),
        ("html".into(), Value::Array(html)),
    ]
}

fn media(mime: String, data: String) -> Value {
    Value::Array(vec![mime.into(), data.into()])
}

fn listing(files: FileListing) -> Value {
    let mut pairs: Vec<(Value, Value)> = vec![
        ("files".into(), files.files.into()),
        ("errors".into(), files.errors.into()),
    ];
    if let Some(path) = files.abspath {
        pairs.push(("abspath".into(), path.into()));
    }
    Value::Map(pairs)
}

fn json_value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => value.into(),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().map_or(Value::Nil, Value::from),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => {
            Value::Array(items.into_iter().map(json_value).collect())
        }
        serde_json::Value::Object(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(key, value)| (key.into(), json_value(value)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(console: Vec<ConsoleItem>) -> Reply {
        Reply::Run(Box::new(RunResult {
            run: "r".to_owned(),
            status: RunStatus::Finished,
            exit_code: Some(0),
            options: None,
            console,
            files: vec![("a.png".to_owned(), "#dummy-upload".to_owned())],
        }))
    }

    fn items() -> Vec<ConsoleItem> {
        vec![
            ConsoleItem::Stdout("a".into()),
            ConsoleItem::Log("l".into()),
            ConsoleItem::Stdout("b".into()),
            ConsoleItem::Media {
                mime: "image/png".into(),
                data: "d".into(),
            },
            ConsoleItem::Html("<b>".into()),
        ]
    }

    fn shown(reply: Reply, shape: Shape) -> String {
        encode(reply, shape).map_or_else(|| "cancelled".to_owned(), |value| value.to_string())
    }

    #[test]
    fn api_1_joins_each_stream_and_drops_the_log() {
        assert_eq!(
            shown(run(items()), Shape::Streams),
            concat!(
                r#"{"runId": "r", "status": "finished", "exitCode": 0, "options": nil, "#,
                r#""stdout": "ab", "stderr": "", "media": [["image/png", "d"]], "html": ["<b>"], "#,
                r##""files": [{"name": "a.png", "url": "#dummy-upload"}]}"##
            )
        );
    }

    #[test]
    fn later_apis_keep_the_order_of_the_console() {
        let text = shown(run(items()), Shape::Console);
        assert!(text.contains(
            r#""console": [["stdout", "a"], ["log", "l"], ["stdout", "b"], ["media", ["image/png", "d"]], ["html", "<b>"]]"#
        ), "{text}");
    }

    #[test]
    fn a_cancelled_run_has_no_value() {
        assert_eq!(shown(Reply::Cancelled, Shape::Console), "cancelled");
    }

    #[test]
    fn statistics_have_twelve_fields_in_order() {
        let text = shown(Reply::Destroyed(Some(KernelStats::default())), Shape::Plain);
        assert!(text.starts_with(r#"{"precpu_used": 0"#), "{text}");
        assert_eq!(text.matches(": 0").count(), 12);
    }

    #[test]
    fn nil_is_nil_whatever_the_node_says() {
        let json = Reply::Json(serde_json::json!(["a"]));
        assert_eq!(shown(json, Shape::Nil), "nil");
        let json = Reply::Json(serde_json::json!({"status": "started", "n": [1, 2.5, null]}));
        assert_eq!(
            shown(json, Shape::Plain),
            r#"{"status": "started", "n": [1, 2.5, nil]}"#
        );
    }
}
