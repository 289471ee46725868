//! Builds krunner, the static runner inside kernels, and packs it into the layer that the agent carries (`src/krunner.rs`).
//!
//! `BACKENDAI_KRUNNER_LAYER=<tar>` takes a layer that was built elsewhere instead.

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
    println!("cargo::rerun-if-env-changed=BACKENDAI_KRUNNER_LAYER");
    let out = PathBuf::from(variable("OUT_DIR"));
    let tar = match prebuilt_layer() {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            read(Path::new(&path))
        }
        None => layer::layer(&read(&build_krunner(&out))),
    };
    let path = out.join("krunner-layer.tar");
    std::fs::write(&path, &tar)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    println!("cargo::rustc-env=KRUNNER_LAYER_TAR={}", path.display());
    println!("cargo::rustc-env=KRUNNER_LAYER_DIGEST={}", digest(&tar));
}

#[allow(
    clippy::disallowed_methods,
    reason = "how people speak to build scripts"
)]
fn prebuilt_layer() -> Option<std::ffi::OsString> {
    std::env::var_os("BACKENDAI_KRUNNER_LAYER")
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
fn build_krunner(out: &Path) -> PathBuf {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let folder = shared_target(out).join("krunner-layer");
    static_build::build_static(&variable("CARGO"), &workspace, &variable("TARGET"), &folder)
        .unwrap_or_else(|error| {
            panic!("{error}, or a layer built elsewhere in BACKENDAI_KRUNNER_LAYER")
        })
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
