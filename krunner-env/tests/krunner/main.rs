//! krunner as the agent sees it: the real binary, driven over its sockets.

mod support;

mod batch;
mod python;
