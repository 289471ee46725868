//! `backendai-agent run`, the real program on the real engine without a daemon; needs root, busybox-static and (once)
//! mmdebstrap.

mod code;
mod disturb;
mod input;
mod inside;
mod leftovers;
mod operator;
mod options;
mod stop;
mod support;
