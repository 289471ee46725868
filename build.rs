//! Builds krunner, the static runner inside kernels, and packs it into the layer that the agent carries (`src/krunner.rs`), and
//! the program that watches a running container (`src/runtime/monitor.rs`).
//!
//! `BACKENDAI_KRUNNER_LAYER=<tar>` and `BACKENDAI_MONITOR=<program>` take what was built elsewhere instead.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo hands a build script its settings in the environment"
)]

#[path = "krunner-env/layer.rs"]
mod layer;
#[path = "krunner-env/static_build.rs"]
mod static_build;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn main() {
    for path in ["build.rs", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for path in [
        "layer.rs",
        "static_build.rs",
        "Cargo.toml",
        "src",
        "zmtp/Cargo.toml",
        "zmtp/src",
    ] {
        println!("cargo::rerun-if-changed=krunner-env/{path}");
    }
    for path in ["Cargo.toml", "src"] {
        println!("cargo::rerun-if-changed=monitor/{path}");
    }
    for name in ["BACKENDAI_KRUNNER_LAYER", "BACKENDAI_MONITOR"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let tar = match prebuilt("BACKENDAI_KRUNNER_LAYER") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            read(Path::new(&path))
        }
        None => layer::layer(&read(&build(
            &out,
            ("krunner-env", "krunner"),
            "BACKENDAI_KRUNNER_LAYER",
        ))),
    };
    let path = out.join("krunner-layer.tar");
    std::fs::write(&path, &tar)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    println!("cargo::rustc-env=KRUNNER_LAYER_TAR={}", path.display());
    println!("cargo::rustc-env=KRUNNER_LAYER_DIGEST={}", digest(&tar));
    if has_feature("MONITOR") {
        let program = match prebuilt("BACKENDAI_MONITOR") {
            Some(path) => {
                println!("cargo::rerun-if-changed={}", Path::new(&path).display());
                PathBuf::from(path)
            }
            None => build(
                &out,
                ("backendai-monitor", "backendai-monitor"),
                "BACKENDAI_MONITOR",
            ),
        };
        println!("cargo::rustc-env=MONITOR_PROGRAM={}", program.display());
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "how people speak to build scripts"
)]
fn prebuilt(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

#[allow(
    clippy::disallowed_methods,
    reason = "how cargo speaks to build scripts"
)]
fn has_feature(name: &str) -> bool {
    std::env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

/// `sha256:` and 64 hexadecimal digits.
fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .fold("sha256:".to_owned(), |text, byte| {
            format!("{text}{byte:02x}")
        })
}

/// Keeps its results beside the outer build's, so that they are shared by all profiles.
fn build(out: &Path, program: (&str, &str), instead: &str) -> PathBuf {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let folder = shared_target(out).join("krunner-layer");
    let (cargo, target) = (variable("CARGO"), variable("TARGET"));
    static_build::build_static(&cargo, &workspace, program, &target, &folder)
        .unwrap_or_else(|error| panic!("{error}, or one built elsewhere in {instead}"))
}

/// The outer build's target folder, or the script's own if it is not to be found.
fn shared_target(out: &Path) -> &Path {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

#[allow(
    clippy::disallowed_methods,
    reason = "how cargo speaks to build scripts"
)]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run by cargo"))
}
