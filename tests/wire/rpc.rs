//! The RPC server over TCP, asked by another implementation of ZeroMQ: the frames of the recorded conversations, and
//! everything that must not harm the server.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::{
    ConsoleItem, Created, Reply, Request, RunResult, RunStatus, ServicePort,
};
use backendai_agent::manager::router::{Limits, Router};
use backendai_agent::manager::v1903::server::{LIMITS, Server};
use bytes::Bytes;
use rmpv::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend};

use crate::stub::{PATIENCE, StubNode, eventually, kernel};

/// The header of the recorded requests, without the request id.
const HEADER: &[u8; 16] = b"\x60\x4d\x91\x72\x01\0\0\0\x38\xac\xe7\x34\x30\xc1\xda\x41";

pub struct Rpc {
    pub node: Arc<StubNode>,
    pub address: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rpc {
    pub async fn start(
        script: impl Fn(&Request) -> Result<Reply, AgentError> + Send + Sync + 'static,
    ) -> Self {
        let node = Arc::new(StubNode::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::tcp(listener, LIMITS);
        let stop = CancellationToken::new();
        let server = Server::new(node.clone(), Arc::default());
        let task = tokio::spawn(server.run(router, stop.clone()));
        Self {
            node,
            address,
            stop,
            task,
        }
    }

    async fn client(&self) -> Client {
        let mut socket = DealerSocket::new();
        let address = format!("tcp://{}", self.address);
        socket.connect(&address).await.unwrap();
        Client { socket, id: 0 }
    }
}

struct Client {
    socket: DealerSocket,
    id: u32,
}

fn header(id: u32) -> Bytes {
    let mut header = HEADER.to_vec();
    header[4..8].copy_from_slice(&id.to_le_bytes());
    header.into()
}

impl Client {
    async fn send(&mut self, frames: Vec<Bytes>) {
        self.socket.send(frames.try_into().unwrap()).await.unwrap();
    }

    /// Sends a call and returns its id.
    async fn call(&mut self, method: &str, args: Value) -> u32 {
        self.id += 1;
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, &args).unwrap();
        let frames = vec![
            header(self.id),
            Bytes::copy_from_slice(method.as_bytes()),
            body.into(),
            Bytes::from_static(b"\x80"),
        ];
        self.send(frames).await;
        self.id
    }

    async fn frames(&mut self) -> Vec<Bytes> {
        let received = tokio::time::timeout(PATIENCE, self.socket.recv()).await;
        received.expect("an answer").unwrap().into_vec()
    }

    /// Request id, error flag and body of the next answer.
    async fn answer(&mut self) -> (u32, bool, Bytes) {
        let frames = self.frames().await;
        let [header, body] = <[Bytes; 2]>::try_from(frames).expect("two frames");
        assert_eq!(header.len(), 17);
        let id = u32::from_le_bytes(header[4..8].try_into().unwrap());
        assert!(header[16] < 2);
        (id, header[16] == 1, body)
    }

    /// Calls and returns the answer in text form, errors as their third element.
    async fn ask(&mut self, method: &str, args: Vec<Value>) -> String {
        let id = self.call(method, Value::Array(args)).await;
        let (answered, error, body) = self.answer().await;
        assert_eq!(answered, id);
        let value = rmpv::decode::read_value(&mut &body[..]).unwrap();
        if error {
            let triple = value.as_array().unwrap();
            assert_eq!(triple.len(), 3);
            return format!(
                "{} {}",
                triple[0].as_str().unwrap(),
                triple[2].as_str().unwrap()
            );
        }
        value.to_string()
    }
}

fn done(_: &Request) -> Result<Reply, AgentError> {
    Ok(Reply::Done)
}

#[tokio::test]
async fn the_recorded_ping_gets_the_recorded_answer() {
    let rpc = Rpc::start(done).await;
    let mut client = rpc.client().await;
    let frames: [&[u8]; 4] = [HEADER, b"ping", b"\x91\xa5hello", b"\x80"];
    client
        .send(frames.map(Bytes::copy_from_slice).to_vec())
        .await;
    let (id, error, body) = client.answer().await;
    assert_eq!((id, error, &body[..]), (1, false, &b"\xa5hello"[..]));
}

#[tokio::test]
async fn leading_frames_are_echoed() {
    let rpc = Rpc::start(done).await;
    let mut client = rpc.client().await;
    let frames: [&[u8]; 6] = [b"route", b"", HEADER, b"ping", b"\x91\xa1x", b"\x80"];
    client
        .send(frames.map(Bytes::copy_from_slice).to_vec())
        .await;
    let frames = client.frames().await;
    assert_eq!(frames.len(), 4);
    assert_eq!((&frames[0][..], &frames[1][..]), (&b"route"[..], &b""[..]));
    assert_eq!(&frames[3][..], b"\xa1x");
}

#[tokio::test]
async fn the_recorded_execution_gets_the_recorded_answer() {
    let rpc = Rpc::start(|request| {
        assert!(matches!(request, Request::Execute(_)));
        Ok(Reply::Run(Box::new(RunResult {
            run: "r".to_owned(),
            status: RunStatus::Finished,
            exit_code: Some(0),
            options: None,
            console: vec![ConsoleItem::Stdout("hi\n".to_owned())],
            files: Vec::new(),
        })))
    })
    .await;
    let mut client = rpc.client().await;
    let mut args = b"\x97\x03\xa3kid\xc0\xa5query\xa8print(1)\x80\xcb".to_vec();
    args.extend(2.0f64.to_be_bytes());
    let frames: [&[u8]; 4] = [HEADER, b"execute", &args, b"\x80"];
    client
        .send(frames.map(Bytes::copy_from_slice).to_vec())
        .await;
    let (_, error, body) = client.answer().await;
    let mut expected = b"\x86\xa5runId\xa1r\xa6status\xa8finished\xa8exitCode\x00".to_vec();
    expected.extend(b"\xa7options\xc0\xa7console\x91\x92\xa6stdout\xa3hi\n\xa5files\x90");
    assert_eq!((error, &body[..]), (false, &expected[..]));
}

#[tokio::test]
async fn creation_is_decoded_and_its_result_has_all_keys() {
    let rpc = Rpc::start(|request| {
        let Request::CreateKernel { kernel, config } = request else {
            panic!("a creation");
        };
        assert_eq!(config.slots.get("cpu").unwrap().value().to_string(), "10");
        assert!(!config.mounts[0].read_only);
        Ok(Reply::Created(Box::new(Created {
            kernel: kernel.clone(),
            host: "h".into(),
            repl_in_port: 30000,
            repl_out_port: 30001,
            stdin_port: 0,
            stdout_port: 0,
            services: vec![ServicePort {
                name: "jupyter".into(),
                protocol: "http".into(),
                container_port: 8081,
                host_port: 30002,
            }],
            container: "c".into(),
            resource_spec: "{}".into(),
        })))
    })
    .await;
    let config = map(vec![
        (
            "image",
            map(vec![
                ("registry", map(vec![("name", "r".into())])),
                ("digest", "sha256:x".into()),
                ("canonical", "r/i:t".into()),
                ("labels", map(vec![])),
            ]),
        ),
        ("resource_slots", map(vec![("cpu", "1E+1".into())])),
        ("idle_timeout", 600.into()),
        (
            "mounts",
            Value::Array(vec![Value::Array(
                ["n", "local", "0a", "wd"].map(Value::from).to_vec(),
            )]),
        ),
        ("environ", map(vec![("A", "1".into())])),
    ]);
    let mut client = rpc.client().await;
    let answer = client.ask("create_kernel", vec!["k1".into(), config]).await;
    let expected = concat!(
        r#"{"id": "k1", "kernel_host": "h", "repl_in_port": 30000, "repl_out_port": 30001, "#,
        r#""stdin_port": 0, "stdout_port": 0, "service_ports": [{"name": "jupyter", "#,
        r#""protocol": "http", "container_port": 8081, "host_port": 30002}], "#,
        r#""container_id": "c", "resource_spec": "{}"}"#
    );
    assert_eq!(answer, expected);
}

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Map(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())
}

#[tokio::test]
async fn errors_are_pythons() {
    let rpc = Rpc::start(|request| {
        Err(match request {
            Request::Execute(_) => return Ok(Reply::Cancelled),
            Request::DownloadFile { .. } => AgentError::Assertion("too large file.".into()),
            Request::ListFiles { .. } => AgentError::FileNotFound("/home/work/x".into()),
            _ => AgentError::UnknownKernel(kernel("k1")),
        })
    })
    .await;
    let mut client = rpc.client().await;
    let key_error = "builtins.KeyError KeyError('k1',)";
    assert_eq!(client.ask("get_logs", vec!["k1".into()]).await, key_error);
    assert_eq!(
        client.ask("hello", vec![]).await,
        "aiozmq.rpc.base.NotFoundError NotFoundError('hello',)"
    );
    assert_eq!(
        client.ask("get_logs", vec![]).await,
        "aiozmq.rpc.base.ParametersError ParametersError('TypeError(\"missing a required argument: \\'kernel_id\\'\",)',)"
    );
    assert_eq!(
        client.ask("ping", vec!["a".into(), "b".into()]).await,
        "aiozmq.rpc.base.ParametersError ParametersError(\"TypeError('too many positional arguments',)\",)"
    );
    assert_eq!(
        client
            .ask("download_file", vec!["k1".into(), "x".into()])
            .await,
        "builtins.AssertionError AssertionError('too large file.',)"
    );
    assert_eq!(
        client
            .ask("list_files", vec!["k1".into(), "x".into()])
            .await,
        "builtins.FileNotFoundError FileNotFoundError('Could not found the file: /home/work/x',)"
    );
    let execute = |run: Value| {
        vec![
            3.into(),
            "k1".into(),
            run,
            "query".into(),
            "".into(),
            map(vec![]),
            Value::Nil,
        ]
    };
    assert_eq!(
        client.ask("execute", execute(Value::Nil)).await,
        "builtins.TypeError TypeError(\"'NoneType' object is not iterable\",)"
    );
    let empty = client.ask("execute", execute("".into())).await;
    assert!(
        empty.starts_with("aiozmq.rpc.base.ParametersError"),
        "{empty}"
    );
}

#[tokio::test]
async fn arguments_are_converted_and_results_are_nil_where_the_original_has_none() {
    let rpc = Rpc::start(|request| match request {
        Request::GetCompletions { .. } | Request::InterruptKernel { .. } => {
            Ok(Reply::Json(serde_json::json!({"status": "x"})))
        }
        Request::DownloadFile { .. } => Ok(Reply::Archive(Bytes::from_static(b"tar\xff"))),
        _ => Ok(Reply::Done),
    })
    .await;
    let mut client = rpc.client().await;
    assert_eq!(client.ask("ping", vec![5.into()]).await, "\"5\"");
    let completions = vec!["k".into(), "pri".into(), map(vec![])];
    assert_eq!(client.ask("get_completions", completions).await, "nil");
    assert_eq!(
        client.ask("interrupt_kernel", vec!["k".into()]).await,
        "nil"
    );
    assert_eq!(client.ask("shutdown_agent", vec![true.into()]).await, "nil");
    let clean = client.ask(
        "clean_all_kernels",
        vec!["manager-freeze-force-kill".into()],
    );
    assert_eq!(clean.await, "nil");
    let data = Value::Binary(b"\0\xff".to_vec());
    let upload = vec![7.into(), "f".into(), data];
    assert_eq!(client.ask("upload_file", upload).await, "nil");
    let id = client
        .call("download_file", Value::Array(vec!["k".into(), "x".into()]))
        .await;
    let (answered, _, body) = client.answer().await;
    assert_eq!((answered, &body[..]), (id, &b"\xc4\x04tar\xff"[..]));
    let calls = rpc.node.calls.lock().unwrap().clone();
    assert!(
        calls[0].starts_with("GetCompletions"),
        "the runner was asked: {calls:?}"
    );
    let destroy = "DestroyAll { reason: \"manager-freeze-force-kill\" }";
    assert_eq!(calls[2], destroy);
    let upload = r#"UploadFile { kernel: KernelId("7"), filename: "f", data: b"\0\xff" }"#;
    assert_eq!(calls[3], upload);
}

#[tokio::test]
async fn a_slow_call_holds_nobody_up() {
    let rpc = Rpc::start(|_| Ok(Reply::Logs("l".into()))).await;
    let mut client = rpc.client().await;
    let slow = client
        .call("get_logs", Value::Array(vec!["slow".into()]))
        .await;
    let fast = client
        .call("get_logs", Value::Array(vec!["fast".into()]))
        .await;
    assert_eq!(client.answer().await.0, fast);
    rpc.node.gate.add_permits(1);
    assert_eq!(client.answer().await.0, slow);
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_not_answered_and_the_server_lives() {
    let rpc = Rpc::start(done).await;
    let mut client = rpc.client().await;
    let bad: [&[&[u8]]; 9] = [
        &[b"x"],
        &[HEADER, b"ping", b"\x90"],
        &[&HEADER[..15], b"ping", b"\x90", b"\x80"],
        &[HEADER, b"\xff\xfe", b"\x90", b"\x80"],
        &[HEADER, b"ping", b"\x91", b"\x80"],
        &[HEADER, b"ping", b"\x91\xa1\xff", b"\x80"],
        &[HEADER, b"ping", b"\x91\xa1x", b""],
        &[HEADER, b"ping", b"\x91\xa1x\x00", b"\x80"],
        &[HEADER, b"ping", b"\xdd\xff\xff\xff\xff", b"\x80"],
    ];
    for frames in bad {
        let frames = frames.iter().map(|f| Bytes::copy_from_slice(f)).collect();
        client.send(frames).await;
    }
    assert_eq!(client.ask("ping", vec!["alive".into()]).await, "\"alive\"");
}

/// A raw connection that has finished the handshake as a DEALER.
fn raw_dealer(address: &str) -> std::net::TcpStream {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0u8; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).unwrap();
    let mut ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER".to_vec();
    ready.splice(0..0, [4, u8::try_from(ready.len()).unwrap()]);
    stream.write_all(&ready).unwrap();
    let mut answer = vec![0; 64];
    stream.read_exact(&mut answer).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_misbehave_harm_only_themselves() {
    use std::io::Read;
    let rpc = Rpc::start(done).await;
    let mut client = rpc.client().await;
    let mut http = std::net::TcpStream::connect(&rpc.address).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = std::net::TcpStream::connect(&rpc.address).unwrap();
    let mut vanishing = raw_dealer(&rpc.address);
    vanishing.write_all(b"\x01\x10half").unwrap();
    drop(vanishing);
    // A frame that claims 2^62 bytes, then one that claims a little too much.
    for claim in [1u64 << 62, 97 << 20] {
        let mut huge = raw_dealer(&rpc.address);
        huge.write_all(&[2]).unwrap();
        huge.write_all(&claim.to_be_bytes()).unwrap();
        let mut rest = Vec::new();
        // The server closes: end of file or a reset.
        let _ = huge.read_to_end(&mut rest);
    }
    assert_eq!(client.ask("ping", vec!["alive".into()]).await, "\"alive\"");
}

#[tokio::test]
async fn answers_for_a_caller_that_has_gone_are_dropped() {
    let rpc = Rpc::start(|_| Ok(Reply::Logs("l".into()))).await;
    let mut gone = rpc.client().await;
    gone.call("get_logs", Value::Array(vec!["slow".into()]))
        .await;
    let mut client = rpc.client().await;
    assert_eq!(client.ask("ping", vec!["x".into()]).await, "\"x\"");
    drop(gone);
    rpc.node.gate.add_permits(1);
    assert_eq!(client.ask("ping", vec!["y".into()]).await, "\"y\"");
}

#[tokio::test]
async fn a_message_of_64_mib_passes() {
    let rpc = Rpc::start(|request| {
        let Request::UploadFile { data, .. } = request else {
            panic!("an upload");
        };
        Ok(Reply::Text(data.len().to_string()))
    })
    .await;
    let mut client = rpc.client().await;
    let data = Value::Binary(vec![7; 64 << 20]);
    let answer = client
        .ask("upload_file", vec!["k".into(), "f".into(), data])
        .await;
    assert_eq!(answer, "nil");
    let calls = rpc.node.calls.lock().unwrap();
    assert_eq!(calls.len(), 1);
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_and_not_queued() {
    let rpc = Rpc::start(|_| Ok(Reply::Logs("l".into()))).await;
    let mut client = rpc.client().await;
    for _ in 0..4096 {
        client
            .call("get_logs", Value::Array(vec!["slow".into()]))
            .await;
    }
    let answer = client.ask("get_logs", vec!["fast".into()]).await;
    assert!(answer.starts_with("builtins.RuntimeError"), "{answer}");
    assert_eq!(
        client.ask("ping", vec!["x".into()]).await,
        "\"x\"",
        "no room needed"
    );
    rpc.node.gate.add_permits(1);
    client.answer().await;
    assert_eq!(
        client.ask("get_logs", vec!["fast".into()]).await,
        r#"{"logs": "l"}"#
    );
}

#[tokio::test]
async fn stopping_drops_running_calls_without_an_answer() {
    let mut rpc = Rpc::start(|_| Ok(Reply::Logs("l".into()))).await;
    let mut client = rpc.client().await;
    client
        .call("get_logs", Value::Array(vec!["slow".into()]))
        .await;
    assert_eq!(client.ask("ping", vec!["x".into()]).await, "\"x\"");
    rpc.stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, &mut rpc.task).await;
    ended.expect("the server ends").unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(200), client.socket.recv()).await;
    assert!(!matches!(nothing, Ok(Ok(_))), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_no_answers_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let limits = Limits {
        unsent: 1 << 20,
        ..LIMITS
    };
    let mut router = Router::tcp(listener, limits);
    let mut peer = raw_dealer(&address);
    peer.write_all(b"\x00\x05hello").unwrap();
    let received = tokio::time::timeout(PATIENCE, router.recv()).await.unwrap();
    let incoming = received.unwrap();
    assert_eq!(incoming.frames, [&b"hello"[..]]);
    let answer = Bytes::from(vec![0; 64 << 10]);
    let cut = async {
        while incoming.sender.send(vec![answer.clone()]) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut)
        .await
        .expect("it is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_and_leave_room_when_they_go() {
    use std::io::Read;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let limits = Limits { peers: 1, ..LIMITS };
    let mut router = Router::tcp(listener, limits);
    let first = raw_dealer(&address);
    let mut second = std::net::TcpStream::connect(&address).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "closed at once");
    drop(first);
    eventually("a free place", async || {
        let mut stream = std::net::TcpStream::connect(&address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (stream.read(&mut [0; 1]).ok()? == 1).then_some(())
    })
    .await;
    let nothing = tokio::time::timeout(Duration::from_millis(1), router.recv()).await;
    assert!(nothing.is_err());
}
