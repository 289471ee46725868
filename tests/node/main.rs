//! `backendai-agent run` and the operator's commands, the real program on a real engine: the one that
//! `BACKENDAI_TEST_RUNTIME` names (`youki`, `docker`, `containerd`), youki when absent. Needs root, busybox-static and
//! (once) mmdebstrap. For a daemon's engine run it beside a daemon: `tests/daemons/lane.sh docker cargo nextest run
//! --test node`; without one each test starts its own.

#[path = "../daemons/mod.rs"]
mod daemons;

mod code;
mod disturb;
mod input;
mod inside;
mod leftovers;
mod operator;
mod options;
mod program;
mod stop;
mod support;
