//! Builds static programs, krunner first of all: a cargo of its own, for this machine's target, with the C library linked in.
//! Included by the agent's build script and by the tests of this package; needs the standard library only.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a program (package and name) in `folder` and returns the binary. Nothing of the settings of a build that this is called from
/// reaches the inner one. A second call with the same sources is quick, also from another process.
///
/// # Errors
/// What to do about it, as a sentence.
pub fn build_static(
    cargo: &str,
    workspace: &Path,
    (package, program): (&str, &str),
    target: &str,
    folder: &Path,
) -> Result<PathBuf, String> {
    let mut command = Command::new(cargo);
    for (name, _) in std::env::vars_os() {
        if is_of_an_outer_build(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command.args(["build", "--quiet", "--package", package, "--bin", program]);
    command
        .args(["--profile", "krunner", "--target", target, "--target-dir"])
        .arg(folder);
    let mut flags = vec!["-C".to_owned(), "target-feature=+crt-static".to_owned()];
    // Where cargo keeps the sources of packages must not be told by the program: it is the same on every machine.
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .current_dir(workspace);
    match command.status() {
        Ok(status) if status.success() => Ok(folder.join(target).join("krunner").join(program)),
        Ok(status) => Err(format!(
            "{program} does not build ({status}): see the messages above; the static C library is needed (Debian: libc6-dev)"
        )),
        Err(error) => Err(format!("cannot run {cargo} for {program}: {error}")),
    }
}

/// Where cargo keeps what it fetches.
#[allow(clippy::disallowed_methods, reason = "how people speak to cargo")]
fn cargo_home() -> Option<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

/// Settings of where packages come from stay; how the outer build compiles, and what cargo tells its scripts, goes.
fn is_of_an_outer_build(name: &str) -> bool {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_TERM_",
        "CARGO_SOURCE_",
    ];
    const GONE: [&str; 12] = [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTDOC",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "DEBUG",
        "PROFILE",
        "DEP_",
    ];
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    // The linker of another architecture is the same for both.
    let linker = name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER");
    (starts(&GONE) && !starts(&KEPT) && !linker) || name == "MAKEFLAGS"
}
