//! The runner's real sockets: PUSH and PULL over TCP, connected from here.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use zmtp::Message;
use zmtp::net::{AsyncPull, AsyncPush, NetConfig};

use super::link::{Connect, Endpoint, Link, OpSink, RecordSource};

/// Connects to runners by ZeroMQ.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZmqConnect;

#[async_trait]
impl Connect for ZmqConnect {
    async fn connect(&self, endpoint: &Endpoint) -> io::Result<Link> {
        // A runner listens a few milliseconds after its container's start: ask again soon at first.
        let config = NetConfig {
            reconnect_first: Duration::from_millis(2),
            reconnect_max: Duration::from_millis(250),
            ..NetConfig::default()
        };
        let Endpoint { host, ops, records } = endpoint;
        Ok(Link {
            ops: Box::new(Push(AsyncPush::connect(
                format!("{host}:{ops}"),
                config.clone(),
            ))),
            records: Box::new(Pull(AsyncPull::connect(
                format!("{host}:{records}"),
                config,
            ))),
        })
    }
}

#[derive(Debug)]
struct Push(AsyncPush);

#[async_trait]
impl OpSink for Push {
    async fn send(&self, message: Message) -> io::Result<()> {
        self.0.send(message).await.map_err(io::Error::other)
    }
}

#[derive(Debug)]
struct Pull(AsyncPull);

#[async_trait]
impl RecordSource for Pull {
    async fn receive(&mut self) -> Option<Message> {
        self.0.recv().await
    }
}
