//! `cargo bench -p krunner-env`: measures the static binary and prints one JSON object a line, medians and 95th percentiles.
//! Names as in the repository's `bench.json` where it has them.

#[path = "../tests/krunner/support.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod support;

#[path = "../static_build.rs"]
mod static_build;

use std::path::{Path, PathBuf};
use std::time::Instant;

use support::{Agent, Builder, Kernel};

const MIB: f64 = 1024.0 * 1024.0;

fn main() {
    let binary = static_binary();
    #[allow(clippy::cast_precision_loss, reason = "a file of a few MiB")]
    report(
        "krunner_size",
        "MiB",
        &[binary.metadata().expect("a file").len() as f64 / MIB],
    );
    starts(&binary);
    let kernel = kernel(&binary);
    let mut agent = kernel.agent();
    agent.query("1");
    report("krunner_rss", "MiB", &[memory_mib(&kernel, "VmRSS:")]);
    report(
        "krunner_query",
        "ms",
        &sample(200, || millis(|| drop(agent.query("print(1)")))),
    );
    report(
        "krunner_batch",
        "ms",
        &sample(50, || millis(|| batch(&mut agent))),
    );
    report(
        "krunner_complete",
        "ms",
        &sample(50, || millis(|| complete(&mut agent))),
    );
    report(
        "krunner_interrupt",
        "ms",
        &sample(20, || interrupt(&mut agent)),
    );
    let throughput =
        |agent: &mut Agent, op: &str, text: &str| sample(5, || mib_per_second(agent, op, text));
    report(
        "krunner_batch_throughput",
        "MiB/s",
        &throughput(&mut agent, "exec", "head -c 268435456 /dev/zero"),
    );
    report(
        "krunner_print_throughput",
        "MiB/s",
        &throughput(&mut agent, "code", "print('x' * 104857600)"),
    );
    report(
        "krunner_lines_throughput",
        "MiB/s",
        &throughput(
            &mut agent,
            "code",
            "for _ in range(100000): print('x' * 99)",
        ),
    );
    agent.query("1");
    report("krunner_rss_after", "MiB", &[memory_mib(&kernel, "VmRSS:")]);
    report("krunner_rss_peak", "MiB", &[memory_mib(&kernel, "VmHWM:")]);
}

fn static_binary() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("below the workspace");
    let own = Path::new(env!("CARGO_BIN_EXE_krunner"));
    let target = own
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .expect("a target folder");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    static_build::build_static(
        "cargo",
        workspace,
        ("krunner-env", "krunner"),
        &triple,
        &target.join("krunner-layer"),
    )
    .expect("it builds")
}

fn kernel(binary: &Path) -> Kernel {
    Builder::new("python", Some("/usr/bin/python3"))
        .env("BACKENDAI_PYTHON_LEVEL", "plain")
        .program(binary)
        .start()
}

/// From spawn to listening, to the answer to `status`, to the end of the first query.
fn starts(binary: &Path) {
    let (mut listening, mut ready, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let begun = Instant::now();
        let kernel = kernel(binary);
        listening.push(since(begun));
        let mut agent = kernel.agent();
        agent.send("status", "");
        assert_eq!(agent.recv().0, "status");
        ready.push(since(begun));
        agent.query("print(1)");
        first.push(since(begun));
    }
    report("krunner_listening", "ms", &listening);
    report("krunner_ready", "ms", &ready);
    report("krunner_first_query", "ms", &first);
}

fn batch(agent: &mut Agent) {
    for (op, end) in [
        ("clean", "clean-finished"),
        ("build", "build-finished"),
        ("exec", "finished"),
    ] {
        agent.send(op, "true");
        agent.recv_until(end);
    }
}

fn complete(agent: &mut Agent) {
    agent.send("complete", r#"{"code":"impo","line":"impo"}"#);
    assert_eq!(agent.recv().0, "completion");
}

fn interrupt(agent: &mut Agent) -> f64 {
    agent.send("code", "import time\nprint('begun')\ntime.sleep(1000)");
    agent.expect_stdout("begun\n");
    millis(|| {
        agent.send("interrupt", "");
        agent.recv_until("finished");
    })
}

#[allow(clippy::cast_precision_loss, reason = "some hundred MiB")]
fn mib_per_second(agent: &mut Agent, op: &str, text: &str) -> f64 {
    let begun = Instant::now();
    agent.send(op, text);
    let mut bytes = 0;
    loop {
        let (kind, body) = agent.recv();
        match kind.as_str() {
            "finished" => return bytes as f64 / MIB / begun.elapsed().as_secs_f64(),
            _ => bytes += body.len(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "some thousand KiB")]
fn memory_mib(kernel: &Kernel, name: &str) -> f64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", kernel.pid())).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .expect("a line");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    kib as f64 / 1024.0
}

fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn millis(run: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    run();
    since(begun)
}

fn sample(count: usize, mut one: impl FnMut() -> f64) -> Vec<f64> {
    (0..count).map(|_| one()).collect()
}

fn report(name: &str, unit: &str, samples: &[f64]) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)];
    let (n, p50, p95, max) = (sorted.len(), at(50), at(95), at(100));
    println!(
        r#"{{"name": "{name}", "unit": "{unit}", "n": {n}, "p50": {p50:.3}, "p95": {p95:.3}, "max": {max:.3}}}"#
    );
}
