//! A machine on which more wants to run than can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Builder, Kernel};

/// Threads that want to run all the time, until dropped.
struct Busy {
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        // All that the machine has: this process may be kept to some of them.
        // SAFETY: no pointers.
        let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        let spin = |_| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        // Far more than it takes: a few may wait for memory at the moment that counts.
        let threads = (0..8 * processors).map(spin).collect();
        Self { done, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// A Python kernel that was made while the machine was busy, and its log up to then.
fn made_on_a_busy_machine() -> (Kernel, String) {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let _busy = Busy::start();
    let kernel = Builder::new("--debug", Some("python"))
        .log(log.reopen().expect("a file").into())
        .start();
    let text = std::fs::read_to_string(log.path()).expect("text");
    (kernel, text)
}

#[test]
fn an_interpreter_that_nobody_asked_for_comes_later() {
    let (kernel, log) = made_on_a_busy_machine();
    assert!(log.contains("waits for a free processor"), "{log}");
    let children = format!("/proc/{0}/task/{0}/children", kernel.pid());
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_to_string(&children)
        .expect("it runs")
        .is_empty()
    {
        assert!(Instant::now() < deadline, "no interpreter");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kernel.agent().query("6 * 7").out(), "42");
}

#[test]
fn code_and_completions_start_the_interpreter_at_once() {
    let (kernel, _log) = made_on_a_busy_machine();
    assert_eq!(kernel.agent().query("6 * 7").out(), "42");
    let (kernel, _log) = made_on_a_busy_machine();
    let mut agent = kernel.agent();
    agent.send("complete", r#"{"code":"isinstanc"}"#);
    let (kind, body) = agent.recv();
    assert_eq!(kind, "completion");
    assert!(String::from_utf8_lossy(&body).contains("isinstance"));
}
