//! The runner's client over real sockets: commands, output, reconnection.

use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::request::KernelId;
use backendai_agent::kernel::runner::Runner;
use backendai_agent::kernel::runner::link::Endpoint;
use backendai_agent::kernel::runner::run::Flush;
use backendai_agent::kernel::runner::wire::{Mark, Op};
use backendai_agent::kernel::runner::zmq::ZmqConnect;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zmtp::Message;
use zmtp::net::{AsyncPull, AsyncPush, NetConfig};

const LINGER: Duration = Duration::from_secs(5);

/// The sockets of a runner.
struct Sockets {
    ops: AsyncPull,
    records: AsyncPush,
}

impl Sockets {
    async fn bind(ops: u16, records: u16) -> Self {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let config = NetConfig::default;
        Self {
            ops: AsyncPull::bind(&at(ops), config()).await.expect("bound"),
            records: AsyncPush::bind(&at(records), config())
                .await
                .expect("bound"),
        }
    }

    fn endpoint(&self) -> Endpoint {
        let port = |address: Option<std::net::SocketAddr>| address.expect("bound").port();
        Endpoint {
            host: "127.0.0.1".to_owned(),
            ops: port(self.ops.local_addr()),
            records: port(self.records.local_addr()),
        }
    }

    async fn op(&self) -> Message {
        let op = tokio::time::timeout(LINGER, self.ops.recv()).await;
        op.expect("a command comes").expect("the socket is open")
    }

    async fn say(&self, kind: &str, data: &str) {
        let record = Message::from([kind.to_owned(), data.to_owned()]);
        self.records.send(record).await.expect("queued");
    }
}

fn client(endpoint: Endpoint) -> (Runner, CancellationToken) {
    let kernel = KernelId::parse("k1").expect("a plain name");
    let token = CancellationToken::new();
    let connect = Arc::new(ZmqConnect);
    let runner = Runner::new(kernel, endpoint, connect, token.clone(), TaskTracker::new());
    (runner, token)
}

async fn finish(runner: &Runner, run: &str) -> usize {
    let place = runner.enter(run, false);
    runner.open().await.expect("connected");
    let collected = tokio::time::timeout(LINGER, place.run.collect(Flush::AtMark)).await;
    let segment = collected.expect("the run ends");
    assert!(matches!(segment.mark, Some(Mark::Finished { .. })));
    segment.bytes
}

#[tokio::test]
async fn commands_and_output_pass_in_two_frames() {
    let sockets = Sockets::bind(0, 0).await;
    let (runner, _token) = client(sockets.endpoint());
    let place = runner.enter("r1", true);
    place.run.turn().await;
    runner
        .send([Op::Code("print(1)".to_owned())])
        .await
        .expect("sent");
    assert_eq!(sockets.op().await, Message::from(["code", "print(1)"]));
    sockets.say("stdout", "1\n").await;
    sockets.say("finished", r#"{"exitCode": 0}"#).await;
    assert!(finish(&runner, "r1").await > 0);
}

#[tokio::test]
async fn a_runner_that_listens_late_gets_what_was_sent_before() {
    // Ports that are free now; nobody listens yet.
    let endpoint = Sockets::bind(0, 0).await.endpoint();
    let (runner, _token) = client(endpoint.clone());
    runner.send([Op::Interrupt]).await.expect("queued");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let sockets = Sockets::bind(endpoint.ops, endpoint.records).await;
    assert_eq!(sockets.op().await, Message::from(["interrupt", ""]));
}

#[tokio::test]
async fn output_is_kept_for_the_next_client_while_none_is_there() {
    let sockets = Sockets::bind(0, 0).await;
    let (first, token) = client(sockets.endpoint());
    first.interrupt().await.expect("sent");
    sockets.op().await;
    token.cancel();
    drop(first);
    // What is written to a peer that is just going is lost, as with libzmq.
    while sockets.records.status().ready_peers > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for number in 0..100 {
        sockets.say("stdout", &format!("{number:04}\n")).await;
    }
    sockets.say("finished", "").await;
    let (second, _token) = client(sockets.endpoint());
    assert!(finish(&second, "r1").await >= 500);
}
