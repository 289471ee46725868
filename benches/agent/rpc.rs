//! A small client of the agent's RPC socket: a DEALER with one connection, as fast as one thread can be, so that the
//! figures are the agent's.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use rmpv::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection to the agent.
pub struct Rpc {
    stream: TcpStream,
    input: Vec<u8>,
    start: usize,
    next: u32,
}

impl Rpc {
    pub async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut rpc = Self {
            stream,
            input: Vec::new(),
            start: 0,
            next: 1,
        };
        let mut greeting = [0_u8; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        rpc.stream.write_all(&greeting).await?;
        rpc.stream.read_exact(&mut greeting).await?;
        let ready =
            b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00";
        let mut ready = ready.to_vec();
        ready[1] = u8::try_from(ready.len() - 2)?;
        rpc.stream.write_all(&ready).await?;
        let (flags, _) = rpc.frame().await?;
        ensure!(flags & 4 != 0, "the agent did not answer READY");
        Ok(rpc)
    }

    /// One call and its answer.
    pub async fn call(&mut self, method: &str, args: Vec<Value>) -> Result<Value> {
        let body = encode(&Value::Array(args))?;
        let message = self.request(method, &body);
        self.stream.write_all(&message).await?;
        let (failed, value) = self.reply().await?;
        if failed {
            bail!("{method}: {value}");
        }
        Ok(value)
    }

    /// Many calls, always `window` under way: calls a second.
    pub async fn flood(
        &mut self,
        method: &str,
        args: Vec<Value>,
        window: usize,
        count: usize,
    ) -> Result<f64> {
        let body = encode(&Value::Array(args))?;
        let begin = std::time::Instant::now();
        let mut output = Vec::new();
        for _ in 0..window {
            output.extend(self.request(method, &body));
        }
        let mut sent = window;
        let mut received = 0;
        while received < count {
            self.stream.write_all(&output).await?;
            output.clear();
            loop {
                let (failed, _) = self.reply().await?;
                ensure!(!failed, "{method} failed");
                received += 1;
                if sent < count {
                    output.extend(self.request(method, &body));
                    sent += 1;
                }
                if !self.buffered() || received == count {
                    break;
                }
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "a small count")]
        Ok(count as f64 / begin.elapsed().as_secs_f64())
    }

    /// Runs code to its end; the number of bytes of console output.
    pub async fn execute(&mut self, kernel: &str, code: &str) -> Result<usize> {
        let mut bytes = 0;
        self.execute_until(kernel, code, |result| {
            bytes += console_bytes(result);
            get(result, "status").as_str() == Some("finished")
        })
        .await?;
        Ok(bytes)
    }

    /// Runs code until a result satisfies `enough`, and then to its end.
    pub async fn execute_until(
        &mut self,
        kernel: &str,
        code: &str,
        mut enough: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        let (mut mode, mut text, mut run, mut done) = ("query", code.to_owned(), Value::Nil, false);
        loop {
            let args = vec![
                3.into(),
                kernel.into(),
                run.clone(),
                mode.into(),
                text.as_str().into(),
                Value::Map(Vec::new()),
                Value::F64(2.0),
            ];
            let result = self.call("execute", args).await?;
            done = done || enough(&result);
            run = get(&result, "runId").clone();
            if get(&result, "status").as_str() == Some("finished") {
                ensure!(done, "{code}: ended with {result}");
                return Ok(());
            }
            (mode, text) = ("continue", String::new());
        }
    }

    fn request(&mut self, method: &str, body: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; 16];
        header[4..8].copy_from_slice(&self.next.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        let mut out = Vec::with_capacity(body.len() + 64);
        frame(&mut out, &header, true);
        frame(&mut out, method.as_bytes(), true);
        frame(&mut out, body, true);
        frame(&mut out, &[0x80], false);
        out
    }

    async fn reply(&mut self) -> Result<(bool, Value)> {
        let (_, header) = self.frame().await?;
        ensure!(header.len() == 17, "reply header of {} bytes", header.len());
        let (flags, body) = self.frame().await?;
        ensure!(flags & 1 == 0, "reply of more than two frames");
        Ok((
            header[16] != 0,
            rmpv::decode::read_value(&mut body.as_slice())?,
        ))
    }

    /// Whether (the beginning of) a further frame is here already.
    fn buffered(&self) -> bool {
        self.start < self.input.len()
    }

    async fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            let data = &self.input[self.start..];
            let head = match data {
                [flags, rest @ ..] if flags & 2 != 0 && rest.len() >= 8 => Some((
                    9,
                    usize::try_from(u64::from_be_bytes(rest[..8].try_into()?))?,
                )),
                [flags, size, ..] if flags & 2 == 0 => Some((2, usize::from(*size))),
                _ => None,
            };
            if let Some((head, size)) = head
                && data.len() >= head + size
            {
                let frame = (data[0], data[head..head + size].to_vec());
                self.start += head + size;
                if self.start == self.input.len() {
                    self.input.clear();
                    self.start = 0;
                }
                return Ok(frame);
            }
            if self.start > 0 {
                self.input.drain(..self.start);
                self.start = 0;
            }
            self.input.reserve(256 * 1024);
            ensure!(
                self.stream.read_buf(&mut self.input).await? > 0,
                "the agent closed the connection"
            );
        }
    }
}

fn frame(out: &mut Vec<u8>, body: &[u8], more: bool) {
    match u8::try_from(body.len()) {
        Ok(size) => out.extend([u8::from(more), size]),
        Err(_) => {
            out.push(2 | u8::from(more));
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    out.extend(body);
}

fn encode(value: &Value) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value)?;
    Ok(out)
}

fn get<'a>(map: &'a Value, key: &str) -> &'a Value {
    let found = map
        .as_map()
        .and_then(|items| items.iter().find(|(name, _)| name.as_str() == Some(key)));
    found.map_or(&Value::Nil, |(_, value)| value)
}

fn console_bytes(result: &Value) -> usize {
    let items = get(result, "console")
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    items
        .iter()
        .filter_map(|item| item.as_array()?.get(1)?.as_str())
        .map(str::len)
        .sum()
}

/// Whether a result has console output.
pub fn has_output(result: &Value) -> bool {
    console_bytes(result) > 0
}

/// A msgpack map with text keys.
pub fn map(items: Vec<(&str, Value)>) -> Value {
    let items: HashMap<&str, Value> = items.into_iter().collect();
    Value::Map(
        items
            .into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect(),
    )
}
