//! The socket that programs inside kernels ask, mounted at `/opt/backend.ai/agent.sock`: ZeroMQ REP to them, integers
//! of four bytes in native order (19.03, section "In-container helper socket").

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::router::{Incoming, Limits, Router};

/// What programs may send: their questions are short, and whoever does not read is cut.
pub const LIMITS: Limits = Limits {
    frame: 4 << 10,
    message: 16 << 10,
    peers: 1024,
    unsent: 64 << 10,
};

/// Translates a process id of the host into one of the container: −1 when there is no such process in a container,
/// −2 when it is in another one. Called from a thread that may block.
pub type PidTranslator = Arc<dyn Fn(&str, i32) -> i32 + Send + Sync>;

/// Answers until `stop`.
pub async fn run(mut router: Router, translate: PidTranslator, stop: CancellationToken) {
    while let Some(Some(incoming)) = stop.run_until_cancelled(router.recv()).await {
        let translate = translate.clone();
        let answer = tokio::task::spawn_blocking(move || answer(incoming, &translate));
        if let Err(error) = answer.await {
            tracing::error!(%error, "a question from inside a kernel could not be answered");
        }
    }
}

/// Answers one question. The envelope, up to the first empty frame, goes back in front of the answer.
fn answer(incoming: Incoming, translate: &PidTranslator) {
    let mut envelope = incoming.frames;
    let Some(delimiter) = envelope.iter().position(Bytes::is_empty) else {
        return;
    };
    let request = envelope.split_off(delimiter + 1);
    let (code, value) = reply(&request, translate);
    envelope.push(Bytes::copy_from_slice(&code.to_ne_bytes()));
    envelope.push(value);
    // Who has gone needs no answer.
    let _sent = incoming.sender.send(envelope);
}

fn reply(request: &[Bytes], translate: &PidTranslator) -> (i32, Bytes) {
    let number = |value: i32| Bytes::copy_from_slice(&value.to_ne_bytes());
    let action = request.first().map_or(&[][..], |action| &action[..]);
    if !matches!(
        action,
        b"host-pid-to-container-pid" | b"container-pid-to-host-pid"
    ) {
        return (-2, Bytes::from_static(b"Invalid action"));
    }
    let (container, pid) = match arguments(request) {
        Ok(arguments) => arguments,
        Err(problem) => return (-1, format!("Error: {problem}").into()),
    };
    if action == b"host-pid-to-container-pid" {
        (0, number(translate(container, pid)))
    } else {
        (0, number(-1))
    }
}

fn arguments(request: &[Bytes]) -> Result<(&str, i32), &'static str> {
    let container = request.get(1).ok_or("no container id")?;
    let container = std::str::from_utf8(container).map_err(|_| "the container id is not text")?;
    let pid = request.get(2).ok_or("no process id")?;
    let pid: [u8; 4] = pid[..].try_into().map_err(|_| "a process id has 4 bytes")?;
    Ok((container, i32::from_ne_bytes(pid)))
}

/// Translation by what `/proc` says of the process: the container's id is in the name of its control group, and the
/// second number of `NSpid` is the id inside.
pub fn translate(proc: &Path, container: &str, pid: i32) -> i32 {
    let folder = proc.join(pid.to_string());
    let Ok(groups) = std::fs::read_to_string(folder.join("cgroup")) else {
        return -1;
    };
    let parts = || groups.split(['/', '\n', '-', '.', ':']);
    if container.is_empty() || !parts().any(|part| part == container) {
        let is_id = |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        return if parts().any(is_id) { -2 } else { -1 };
    }
    let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(frames: &[&[u8]]) -> (i32, Vec<u8>) {
        let frames: Vec<_> = frames.iter().map(|f| Bytes::copy_from_slice(f)).collect();
        let translate: PidTranslator = Arc::new(|container, pid| {
            assert_eq!(container, "c1");
            pid - 4000
        });
        let (code, value) = reply(&frames, &translate);
        (code, value.to_vec())
    }

    #[test]
    fn answers_are_native_integers_or_texts() {
        let pid = 4007i32.to_ne_bytes();
        let number = |value: i32| value.to_ne_bytes().to_vec();
        assert_eq!(
            ask(&[b"host-pid-to-container-pid", b"c1", &pid]),
            (0, number(7))
        );
        assert_eq!(
            ask(&[b"container-pid-to-host-pid", b"c1", &pid]),
            (0, number(-1))
        );
        assert_eq!(ask(&[b"format-disk"]), (-2, b"Invalid action".to_vec()));
        assert_eq!(ask(&[]), (-2, b"Invalid action".to_vec()));
        for bad in [
            &[&b"host-pid-to-container-pid"[..]][..],
            &[b"host-pid-to-container-pid", b"c1"],
            &[b"host-pid-to-container-pid", b"c1", b"12"],
            &[b"host-pid-to-container-pid", b"\xff", &pid],
        ] {
            let (code, text) = ask(bad);
            assert_eq!(code, -1);
            assert!(text.starts_with(b"Error: "));
        }
    }

    #[test]
    fn translation_reads_the_group_and_the_inner_id() {
        let proc = tempfile::tempdir().expect("a folder");
        let (ours, other) = ("a".repeat(64), "b".repeat(64));
        for (pid, group) in [
            (10, format!("0::/system.slice/docker-{ours}.scope\n")),
            (11, format!("4:pids:/docker/{other}\n")),
            (12, "0::/user.slice\n".to_owned()),
        ] {
            let folder = proc.path().join(pid.to_string());
            std::fs::create_dir(&folder).expect("a folder");
            std::fs::write(folder.join("cgroup"), group).expect("a file");
            std::fs::write(folder.join("status"), "Name:\tx\nNSpid:\t10\t3\n").expect("a file");
        }
        let ask = |pid| translate(proc.path(), &ours, pid);
        assert_eq!([ask(10), ask(11), ask(12), ask(13)], [3, -2, -1, -1]);
    }
}
