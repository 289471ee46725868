//! What runs containers below containerd: the shim's name and options, and how their output reaches the log.
//!
//! The small program of `monitor/` stands before runc and its like so that a container has one stream of output, and
//! collects the log as the shim's logger. It lies as a file below the state folder, by its digest: containers that
//! run keep the one that they were started with, also when the agent is replaced.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use backendai_monitor::{Collect, handler};
use prost::Message;
use prost_types::Any;

use crate::runtime::{RuntimeError, monitor};
use crate::sys::program::{self, SYSTEM_PATH};

/// Name of our program's file.
const LOGGER: &str = "logger";

/// The shim for runc and whatever has its command line.
const RUNC: &str = "io.containerd.runc.v2";

/// `containerd.runc.v1.Options`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// What runs containers.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    /// Name of the shim.
    pub runtime: String,
    /// Its options.
    pub options: Option<Any>,
    /// The program that collects logs.
    logger: PathBuf,
}

impl Handler {
    /// Prepares `name`: `runc`, `crun`, `youki`, a path of such a program, `runsc`, or a shim's whole name.
    pub fn open(name: &str, state: &Path) -> Result<Self, RuntimeError> {
        let failed = |error: io::Error| {
            let path = state.display();
            RuntimeError::Invalid(format!("containerd: cannot prepare {path}: {error}"))
        };
        let folder = monitor::on_disk(&state.join("bin"), LOGGER).map_err(failed)?;
        let logger = folder.join(LOGGER);
        let plain = |runtime: &str| Self {
            runtime: runtime.to_owned(),
            options: None,
            logger: logger.clone(),
        };
        if name == "runsc" {
            return Ok(plain("io.containerd.runsc.v1"));
        }
        if name.starts_with("io.containerd.") {
            return Ok(plain(name));
        }
        let program = find(name).ok_or_else(|| {
            RuntimeError::Invalid(format!(
                "containerd: there is no program {name} to run containers with; install it, or name another one"
            ))
        })?;
        let front = put_before(&folder, &program).map_err(failed)?;
        let options = RuncOptions {
            binary_name: front.to_string_lossy().into_owned(),
        };
        Ok(Self {
            options: Some(Any {
                type_url: "containerd.runc.v1.Options".to_owned(),
                value: options.encode_to_vec(),
            }),
            ..plain(RUNC)
        })
    }

    /// The URI by which a shim starts a container's logger.
    pub fn logger(&self, logs: &Path, limit: u64) -> String {
        let collect = Collect {
            logs: logs.to_owned(),
            log_limit: limit,
        };
        let [word, value] = collect.args().map(|arg| escaped(&arg));
        let program = escaped(self.logger.as_os_str());
        format!("binary://{program}?{word}={value}")
    }
}

/// Makes a name of our program that stands for `program`, such as `usr-sbin-runc`.
fn put_before(folder: &Path, program: &Path) -> io::Result<PathBuf> {
    let name = program
        .to_string_lossy()
        .trim_matches('/')
        .replace('/', "-");
    let front = folder.join(name);
    for (target, link) in [
        (program, handler::real(&front)),
        (Path::new(LOGGER), front.clone()),
    ] {
        match symlink(target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(front)
}

fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        let path = fs::canonicalize(name).ok()?;
        return path.is_file().then_some(path);
    }
    program::find(name, SYSTEM_PATH.map(Path::new))
}

/// Everything but plain letters and signs of paths as `%XX`.
fn escaped(text: &OsStr) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._".contains(&byte);
    let escape = |byte: &u8| match plain(*byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.as_bytes().iter().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loggers_uri_hides_nothing_that_a_uri_means_something_else_by() {
        let dir = tempfile::tempdir().expect("temp dir");
        let handler = Handler::open("/bin/sh", dir.path()).expect("open");
        let uri = handler.logger(Path::new("/a b/ä?x=1&y"), 12);
        let (program, query) = uri.split_once('?').expect("query");
        assert!(
            program.starts_with("binary:///") && program.ends_with("/logger"),
            "{uri}"
        );
        assert_eq!(query, "__log=12%3A/a%20b/%C3%A4%3Fx%3D1%26y");
    }

    #[test]
    fn our_program_stands_before_the_real_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        for _ in 0..2 {
            let handler = Handler::open("sh", dir.path()).expect("open");
            let options = handler.options.expect("options");
            let front = RuncOptions::decode(&*options.value)
                .expect("options")
                .binary_name;
            let script = "echo out; echo err >&2";
            let run = |word: &str| {
                let args = ["-c", script, word];
                let output = std::process::Command::new(&front).args(args).output();
                String::from_utf8(output.expect("run").stdout).expect("text")
            };
            assert_eq!(run("create"), "out\nerr\n");
            assert_eq!(run("delete"), "out\n");
        }
    }

    #[test]
    fn names_of_shims_and_programs_are_told_apart() {
        let dir = tempfile::tempdir().expect("temp dir");
        let runtime = |name: &str| Handler::open(name, dir.path()).map(|it| it.runtime);
        assert_eq!(runtime("runsc").expect("open"), "io.containerd.runsc.v1");
        assert_eq!(
            runtime("io.containerd.kata.v2").expect("open"),
            "io.containerd.kata.v2"
        );
        assert_eq!(runtime("/bin/sh").expect("open"), RUNC);
        let error = runtime("no-such-runtime").expect_err("unknown").to_string();
        assert!(error.contains("no-such-runtime"), "{error}");
    }
}
