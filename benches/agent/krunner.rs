//! The in-container runner alone: start, memory, size.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use backendai_agent::krunner::KrunnerLayer;

use super::report::{Report, Series};

/// Starts of krunner.
const STARTS: usize = 30;

/// Measures the built-in layer's krunner.
pub fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    let root = KrunnerLayer::built_in().ensure_unpacked(&folder.join("krunner"))?;
    let program = root.join("opt/backend.ai/bin/krunner");
    #[allow(clippy::cast_precision_loss, reason = "a small file")]
    report.add(Series::single(
        "krunner_size",
        "MiB",
        std::fs::metadata(&program)?.len() as f64 / 1048576.0,
    ));
    let (mut ready, mut rss) = (
        Series::ms("krunner_ready"),
        Series::new("krunner_rss", "MiB"),
    );
    for round in 0..STARTS {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        drop(listener);
        let home = folder.join(format!("home-{round}"));
        std::fs::create_dir_all(&home)?;
        let begin = Instant::now();
        let mut child = Command::new(&program)
            .args([
                "--replin",
                &port.to_string(),
                "--replout",
                "0",
                "--input-port",
                "0",
                // In its own folder, not in the machine's /tmp.
                "--input-socket",
                "input.sock",
                "c",
            ])
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let answered = handshake(port, begin);
        ready.push_ms(begin.elapsed());
        std::thread::sleep(Duration::from_millis(50));
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        rss.push(kib.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0);
        child.kill()?;
        child.wait()?;
        answered?;
    }
    report.add(ready);
    report.add(rss);
    Ok(())
}

/// Until the command socket has answered the greeting.
fn handshake(port: u16, begin: Instant) -> Result<()> {
    let mut greeting = [0_u8; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    while begin.elapsed() < Duration::from_secs(5) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(&greeting)?;
            return Ok(stream.read_exact(&mut greeting)?);
        }
    }
    anyhow::bail!("krunner did not listen within 5 s")
}
