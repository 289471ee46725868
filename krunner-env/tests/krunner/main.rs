//! krunner as the agent sees it: the real binary, driven over its sockets.

#![allow(clippy::disallowed_methods, reason = "tests look at HOME and CARGO")]

mod support;

mod batch;
mod busy;
mod flood;
mod input;
mod interrupt;
mod ipython;
mod languages;
mod op;
mod peer;
mod python;
mod root;
