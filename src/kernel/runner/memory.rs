//! The way to the fake engine's programs, without sockets.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};
use zmtp::Message;

use super::link::{Connect, Endpoint, Link, OpSink, RecordSource};
use crate::runtime::fake::FakeRuntime;

#[async_trait]
impl Connect for FakeRuntime {
    async fn connect(&self, endpoint: &Endpoint) -> io::Result<Link> {
        let end = self.runner_at(endpoint.ops);
        let end = end.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(Link {
            ops: Box::new(Ops(end.ops)),
            records: Box::new(Records(end.records)),
        })
    }
}

#[derive(Debug)]
struct Ops(mpsc::Sender<Message>);

#[async_trait]
impl OpSink for Ops {
    async fn send(&self, message: Message) -> io::Result<()> {
        self.0.send(message).await.map_err(io::Error::other)
    }
}

#[derive(Debug)]
struct Records(Arc<Mutex<mpsc::Receiver<Message>>>);

#[async_trait]
impl RecordSource for Records {
    async fn receive(&mut self) -> Option<Message> {
        self.0.lock().await.recv().await
    }
}
