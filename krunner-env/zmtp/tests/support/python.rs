//! A Python interpreter that has pyzmq.
//!
//! `BACKENDAI_TEST_PYTHON` names one; else a virtual environment is made once for each user, under
//! `~/.cache/backendai-agent/`, with the version of pyzmq pinned here. Tests fail when neither can be had: the
//! interoperability with libzmq is never skipped in silence.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const PYZMQ: &str = "27.3.0";

/// The interpreter's path.
pub fn interpreter() -> &'static Path {
    static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
    INTERPRETER.get_or_init(|| match env::var_os("BACKENDAI_TEST_PYTHON") {
        Some(given) => {
            let given = PathBuf::from(given);
            assert!(
                has_zmq(&given),
                "BACKENDAI_TEST_PYTHON={} cannot import zmq",
                given.display()
            );
            given
        }
        None => environment(),
    })
}

/// Makes the virtual environment if it is not there. A lock lets only one of many test processes do it.
fn environment() -> PathBuf {
    let home = env::var_os("HOME").expect("HOME is set, or BACKENDAI_TEST_PYTHON");
    let cache = Path::new(&home).join(".cache/backendai-agent");
    fs::create_dir_all(&cache).expect("~/.cache/backendai-agent can be made");
    let folder = cache.join(format!("venv-zmq-{PYZMQ}"));
    let python = folder.join("bin/python");
    let lock = File::create(cache.join(format!("venv-zmq-{PYZMQ}.lock")))
        .expect("the lock file can be made");
    lock.lock().expect("the lock file can be locked");
    if !has_zmq(&python) {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder));
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        run(Command::new(&python)
            .args(pip)
            .arg(format!("pyzmq=={PYZMQ}")));
    }
    python
}

fn has_zmq(python: &Path) -> bool {
    Command::new(python)
        .args(["-c", "import zmq"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "these tests need pyzmq, and it could not be installed; set BACKENDAI_TEST_PYTHON to an interpreter that has it.\n{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
