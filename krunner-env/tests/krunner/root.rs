//! The static binary, as containers run it: as PID 1, as root that becomes a user, in a root folder without anything else.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::support::{Builder, Kernel};

#[path = "../../layer.rs"]
mod layer;
#[path = "../../static_build.rs"]
mod static_build;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("below the workspace")
}

fn built(workspace: &Path, target: &Path) -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let program = ("krunner-env", "krunner");
    static_build::build_static(&cargo, workspace, program, &triple, target).expect("it builds")
}

/// The binary that goes into the layer. It shares its build with the agent's build script.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let own = Path::new(env!("CARGO_BIN_EXE_krunner"));
        let target = own
            .ancestors()
            .find(|folder| folder.join("CACHEDIR.TAG").exists())
            .expect("a target folder");
        built(workspace(), &target.join("krunner-layer"))
    })
}

fn number(data: &[u8], at: usize, length: usize) -> usize {
    data[at..at + length]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// The types of an ELF file's program headers.
fn segment_types(elf: &[u8]) -> Vec<usize> {
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "64 bits, little endian");
    let (table, size, count) = (number(elf, 32, 8), number(elf, 54, 2), number(elf, 56, 2));
    (0..count)
        .map(|index| number(elf, table + index * size, 4))
        .collect()
}

/// Builds a root with only the runner and the folders of a kernel, and starts it there as PID 1 and root.
fn in_an_empty_root(before: &[&str], uid: &str) -> Kernel {
    let builder = Builder::new("python", None);
    let words = [
        &[
            "unshare",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            "--mount",
        ],
        before,
    ]
    .concat();
    builder
        .wrapped(&words)
        .env("LOCAL_USER_ID", uid)
        .program(binary())
        .init()
        .rooted()
        .start()
}

#[test]
fn the_binary_has_no_interpreter_and_is_position_independent() {
    const PT_INTERP: usize = 3;
    const ET_DYN: usize = 3;
    let elf = std::fs::read(binary()).expect("a file");
    assert!(!segment_types(&elf).contains(&PT_INTERP));
    assert_eq!(number(&elf, 16, 2), ET_DYN);
    // The same look at a dynamic program finds one: the check can fail.
    let dynamic = std::fs::read(env!("CARGO_BIN_EXE_krunner")).expect("a file");
    assert!(segment_types(&dynamic).contains(&PT_INTERP));
}

#[test]
fn the_binary_is_at_most_2_mib() {
    assert!(binary().metadata().expect("a file").len() <= 2 << 20);
}

#[test]
fn an_empty_root_is_enough() {
    let kernel = in_an_empty_root(&[], "0");
    let mut agent = kernel.agent();
    agent.send("status", "");
    assert_eq!(agent.recv().0, "status");
    let run = agent.query("1");
    assert_eq!(run.code(), 127);
    assert!(run.err().contains("no Python"), "{}", run.err());
    let run = agent.exec("echo x");
    assert_eq!(
        (run.err(), run.code()),
        ("krunner: /bin/sh: not found in this image\n", 127)
    );
    // The runner itself is the only program there.
    assert!(!kernel.dir.path().join("etc/passwd").exists());
}

#[test]
fn init_makes_the_user_and_becomes_it() {
    let kernel = in_an_empty_root(&[], "1234");
    let root = kernel.dir.path();
    assert_eq!(
        std::fs::read_to_string(root.join("etc/passwd")).expect("a file"),
        format!("work:x:1234:1234::{}:/bin/sh\n", "/work")
    );
    assert_eq!(
        std::fs::read_to_string(root.join("etc/group")).expect("a file"),
        "work:x:1234:\n"
    );
    assert_eq!(
        root.join("opt/backend.ai/agent.sock")
            .metadata()
            .expect("a file")
            .uid(),
        1234
    );
    let runner = runner_pid(&kernel);
    let status = std::fs::read_to_string(format!("/proc/{runner}/status")).expect("it runs");
    let line = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line")
            .to_owned()
    };
    assert_eq!(line("Uid:"), "Uid:\t1234\t1234\t1234\t1234");
    assert_eq!(line("Gid:"), "Gid:\t1234\t1234\t1234\t1234");
    assert_eq!(line("Groups:").trim_end(), "Groups:\t1234");
    assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
    // Dumpable again: the files of its /proc folder are its own.
    assert_eq!(
        Path::new(&format!("/proc/{runner}/status"))
            .metadata()
            .expect("it runs")
            .uid(),
        1234
    );
}

/// The runner's pid on the outside: the only child of `unshare`.
fn runner_pid(kernel: &Kernel) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", kernel.pid());
    std::fs::read_to_string(path)
        .expect("it runs")
        .trim()
        .parse()
        .expect("one child")
}

#[test]
fn as_pid_1_it_reaps_strangers_and_stops_on_signals() {
    let words = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        "--mount-proc",
    ];
    let kernel = Builder::new("python", Some("/usr/bin/python3"))
        .program(binary())
        .wrapped(&words)
        .start();
    let mut agent = kernel.agent();
    assert_eq!(agent.query("import os; os.getppid()").out(), "1");
    // The orphan of a double fork becomes the runner's child; when it has ended, nothing of it is left.
    let run =
        agent.exec("(sh -c 'exit 3' & ) ; sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status");
    assert_eq!(run.out(), "");
    let runner = runner_pid(&kernel);
    // SAFETY: no pointers; the runner is a child of our child, which has not been waited for.
    unsafe { libc::kill(i32::try_from(runner).expect("a pid"), libc::SIGINT) };
    let mut kernel = kernel;
    assert_eq!(kernel.child.wait().expect("a child").code(), Some(0));
}

#[test]
fn started_without_rights_init_just_runs() {
    let mut builder = Builder::new("app", None).init().program(binary());
    builder = builder.wrapped(&["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]);
    std::os::unix::fs::chown(builder.path("tmp"), Some(1234), None).expect("root runs the tests");
    builder.open_to_others();
    let kernel = builder.start();
    assert_eq!(kernel.agent().exec("id -u").out(), "1234\n");
}

#[test]
fn the_layer_is_the_same_every_time_and_a_tar() {
    let first = layer::layer(b"binary");
    assert_eq!(first, layer::layer(b"binary"));
    assert_eq!(first.len() % 512, 0);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("layer.tar"), &first).expect("a file");
    let output = std::process::Command::new("tar")
        .arg("-tvf")
        .arg(folder.path().join("layer.tar"))
        .output()
        .expect("tar");
    let listing = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success());
    let names: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .collect();
    assert!(names.is_sorted(), "{names:?}");
    assert!(
        listing
            .contains("-rwxr-xr-x 0/0               6 1970-01-01 00:00 opt/backend.ai/bin/krunner"),
        "{listing}"
    );
    assert!(
        listing.contains("opt/backend.ai/bin/python -> krunner"),
        "{listing}"
    );
}

#[test]
fn the_same_sources_in_another_folder_make_the_same_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("another/folder");
    std::fs::create_dir_all(&copy).expect("a folder");
    let status = std::process::Command::new("cp")
        .arg("-r")
        .args(
            [
                "Cargo.toml",
                "Cargo.lock",
                "build.rs",
                "src",
                "benches",
                "krunner-env",
                "monitor",
            ]
            .map(|name| workspace().join(name)),
        )
        .arg(&copy)
        .status();
    assert!(status.expect("cp").success());
    let other = std::fs::read(built(&copy, &folder.path().join("target"))).expect("a program");
    let ours = std::fs::read(binary()).expect("a program");
    assert!(other == ours, "{} and {} bytes", other.len(), ours.len());
    assert_eq!(layer::layer(&other), layer::layer(&ours));
    // Nor is it told where the packages' sources are kept.
    let home = std::env::home_dir()
        .expect("a home")
        .join(".cargo/registry");
    let home = home.to_str().expect("a plain path").as_bytes();
    assert!(!ours.windows(home.len()).any(|bytes| bytes == home));
}
