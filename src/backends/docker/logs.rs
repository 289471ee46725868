//! The log that dockerd keeps.

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::TryStreamExt as _;

use super::{Docker, known, not_found};
use crate::runtime::{ContainerId, Result};

impl Docker {
    pub(super) async fn read_log(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        known(id)?;
        // dockerd counts lines, of which each has a byte at least.
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&limit.max(1).to_string())
            .build();
        let read = async {
            let mut tail = Tail::new(limit);
            let mut pieces = self.client.api.logs(&id.0, Some(options));
            while let Some(piece) = pieces.try_next().await? {
                match piece {
                    // Containers of the Python agent have a terminal, which puts a carriage return before each line end.
                    LogOutput::Console { message } => match message.strip_suffix(b"\r\n") {
                        Some(line) => tail.push(&[line, b"\n"].concat()),
                        None => tail.push(&message),
                    },
                    other => tail.push(other.as_ref()),
                }
            }
            Ok::<_, Error>(tail.bytes())
        };
        let read = self
            .client
            .ask(format!("reading the log of container {id}"), read)
            .await;
        read.map_err(not_found(id))
    }
}

/// The last bytes of what is pushed.
struct Tail {
    limit: usize,
    bytes: Vec<u8>,
}

impl Tail {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() > self.limit.saturating_mul(2).max(1 << 16) {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
    }

    fn bytes(mut self) -> Vec<u8> {
        self.bytes
            .split_off(self.bytes.len().saturating_sub(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_came_is_kept_however_it_came() {
        for size in [1, 7, 1000, 200_000] {
            let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
            for limit in [0, 1, 5000, 10_000_000] {
                let mut tail = Tail::new(limit);
                text.chunks(size).for_each(|piece| tail.push(piece));
                let start = text.len().saturating_sub(limit);
                assert_eq!(tail.bytes(), text[start..]);
            }
        }
    }
}
