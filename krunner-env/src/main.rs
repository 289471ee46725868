//! krunner.
fn main() {}
