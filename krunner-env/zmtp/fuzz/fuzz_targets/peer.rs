//! A hostile peer. `cargo fuzz run peer` in `krunner-env/zmtp`.
#![no_main]

#[path = "../body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
