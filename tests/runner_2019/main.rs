//! Kernels with 19.03's own runner: its environment of Python 3.6, and the runner, hook and entry point out of the published
//! package of the Python agent, on the real engines. Needs root and Python 3.6; the package and what it runs on are made once,
//! in the cache.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../daemons/mod.rs"]
mod daemons;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use self::daemons::{Daemon, Kind, own_network};
use tempfile::TempDir;

const IMAGE: &str = "lablup/python:2019";
/// Longer than a program that hangs may take, seconds.
const PATIENCE: &str = "150";

/// What is of 2019: tars of the environment and of a kernel image for it, and the folder of the package.
struct Parts {
    env: PathBuf,
    image: PathBuf,
    package: PathBuf,
}

/// Makes them, or says what the machine lacks.
fn parts() -> Result<&'static Parts, String> {
    static PARTS: OnceLock<Result<Parts, String>> = OnceLock::new();
    let made = PARTS.get_or_init(|| {
        let agent = script("tests/real_stack/venvs.sh", &["agent"])?;
        let tars = script("tests/real_stack/images-of-2019.sh", &[])?;
        let (env, image) = tars.trim().split_once('\n').expect("two lines");
        let package = "lib/python3.6/site-packages/ai/backend";
        Ok(Parts {
            env: env.into(),
            image: image.into(),
            package: Path::new(agent.trim()).join(package),
        })
    });
    made.as_ref().map_err(Clone::clone)
}

fn script(path: &str, arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let output = Command::new(path).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match output.status.code() {
        Some(0) => Ok(text(output.stdout)),
        Some(77) => Err(format!("needs {}", text(output.stdout).trim())),
        _ => panic!("{}", text(output.stderr)),
    }
}

/// The agent's commands with an engine.
struct Node {
    folder: TempDir,
    engine: Vec<String>,
    daemon: Option<Daemon>,
    parts: &'static Parts,
}

impl Node {
    /// On an engine, with the kernel image; `None`, and the reason is said, when something is lacking.
    fn new(engine: &str, daemon: Option<Kind>) -> Option<Self> {
        let made = || {
            let parts = parts()?;
            let daemon = daemon.map(Daemon::get).transpose()?;
            let mut options = vec!["--runtime".to_owned(), engine.to_owned()];
            if let Some(daemon) = &daemon {
                options.extend(["--runtime-endpoint".to_owned(), daemon.endpoint()]);
            }
            Ok::<_, String>(Self {
                folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
                engine: options,
                daemon,
                parts,
            })
        };
        let node = match made() {
            Ok(node) => node,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
        let flags = script("scripts/kernel-image.sh", &["--flags", "python"]).unwrap();
        let image = node.parts.image.to_str().unwrap();
        let import = [&["image", "import", image, IMAGE][..], &lines(&flags)].concat();
        let output = node.agent(&import);
        assert!(output.status.success(), "{output:?}");
        Some(node)
    }

    fn agent(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", PATIENCE])
            .arg(env!("CARGO_BIN_EXE_backendai-agent"))
            .args(arguments)
            .args(&self.engine)
            .args(["--state-dir", self.path("state").to_str().unwrap()])
            .args(["--run-dir", self.path("run").to_str().unwrap()])
            .env_remove("SUDO_UID");
        command.output().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `run` in a kernel with the runner of 2019: exit status and output.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let env = self.parts.env.to_str().unwrap();
        let package = self.parts.package.to_str().unwrap();
        let krunner = ["--krunner-env", env, "--krunner-package", package];
        let words = [&["run", "--image", IMAGE], &krunner[..], arguments].concat();
        let output = self.agent(&words);
        let text = String::from_utf8(output.stdout).unwrap();
        println!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A daemon that others use keeps what it was given.
        if self.daemon.as_ref().is_some_and(Daemon::is_shared) {
            self.agent(&["image", "rm", IMAGE]);
        }
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// A program that tells who runs it and what was loaded into it.
const TELL: &str = "import os, sys
print(os.getuid() != 0, os.environ['HOME'], os.getcwd())
print(open('/proc/self/maps').read().count('libbaihook') > 0)
print(open('/proc/1/cmdline').read().count('krunner'))
sys.exit(3)
";

fn jobs(engine: &str, daemon: Option<Kind>) {
    if daemon.is_none() {
        own_network();
    }
    let Some(node) = Node::new(engine, daemon) else {
        return;
    };
    let main = node.path("main.py");
    std::fs::write(&main, TELL).unwrap();
    let main = main.to_str().unwrap();
    let (code, text) = node.run(&["--exec", "python3 main.py", main]);
    assert!(
        text.contains("True /home/work /home/work\nTrue\n0\n"),
        "{text}"
    );
    assert_eq!(code, Some(3));
    let (code, text) = node.run(&["-c", "print('sum', 40 + 2)"]);
    assert!(text.contains("sum 42\n"), "{text}");
    assert_eq!(code, Some(0));
}

mod youki {
    #[test]
    fn the_runner_of_2019_runs_batches_and_queries() {
        super::jobs("youki", None);
    }
}

mod docker {
    #[test]
    fn the_runner_of_2019_runs_batches_and_queries() {
        super::jobs("docker", Some(super::Kind::Docker));
    }
}

mod containerd {
    #[test]
    fn the_runner_of_2019_runs_batches_and_queries() {
        super::jobs("containerd", Some(super::Kind::Containerd));
    }
}
