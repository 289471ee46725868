//! What a program may do: capabilities, system calls, the machine's settings and secrets.

use backendai_agent::runtime::Seccomp;

use crate::engine::TestEngine;

contract! {
    without fake {
        // The fake has no rights to give or to take.
        the_default_filter_is_on_and_can_be_left_out
        new_privileges_are_refused_or_allowed_as_asked
        the_capabilities_are_those_asked_for_and_no_others
        a_program_may_be_given_no_capability_at_all
        the_kernels_secrets_are_masked_and_its_settings_read_only
        a_container_cannot_raise_its_own_limits
    }
}

async fn the_default_filter_is_on_and_can_be_left_out(engine: TestEngine) {
    let mut spec = engine.shell("grep Seccomp: /proc/self/status; unshare -n true 2>&1 || true");
    let log = engine.output_of(&spec).await;
    assert!(
        log.starts_with("Seccomp:\t2\n") && log.contains("not permitted"),
        "{log}"
    );
    spec.seccomp = Seccomp::Unconfined;
    let log = engine.output_of(&spec).await;
    assert!(log.starts_with("Seccomp:\t0\n"), "{log}");
    engine.close().await;
}

async fn new_privileges_are_refused_or_allowed_as_asked(engine: TestEngine) {
    let mut spec = engine.shell("grep NoNewPrivs /proc/self/status");
    assert_eq!(engine.output_of(&spec).await, "NoNewPrivs:\t1\n");
    spec.no_new_privileges = false;
    assert_eq!(engine.output_of(&spec).await, "NoNewPrivs:\t0\n");
    engine.close().await;
}

async fn the_capabilities_are_those_asked_for_and_no_others(engine: TestEngine) {
    let mut spec = engine.shell("grep ^Cap /proc/self/status");
    spec.capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]
        .map(str::to_owned)
        .into();
    let log = engine.output_of(&spec).await;
    let set = "00000000000000a1";
    let none = "0000000000000000";
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{none}\n"
    );
    assert_eq!(log, wanted);
    engine.close().await;
}

async fn a_program_may_be_given_no_capability_at_all(engine: TestEngine) {
    let mut spec = engine.shell("grep -e CapEff -e CapBnd /proc/self/status; id -u 2> /dev/null");
    spec.capabilities.clear();
    let log = engine.output_of(&spec).await;
    assert_eq!(
        log,
        "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n0\n"
    );
    engine.close().await;
}

async fn the_kernels_secrets_are_masked_and_its_settings_read_only(engine: TestEngine) {
    let script = "wc -c < /proc/keys; ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/domainname) 2>&1; mkdir /sys/fs/x 2>&1; true";
    let log = engine.output(script).await;
    assert!(log.starts_with("0\n0\n"), "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 2, "{log}");
    engine.close().await;
}

async fn a_container_cannot_raise_its_own_limits(engine: TestEngine) {
    let script = "cd /sys/fs/cgroup; for file in pids.max pids/pids.max memory.max memory/memory.limit_in_bytes; do \
        [ ! -e $file ] || (echo 12345 > $file) 2>&1; done; true";
    let mut spec = engine.shell(script);
    spec.limits.pids = Some(100);
    let log = engine.output_of(&spec).await;
    let refused = log
        .lines()
        .all(|line| line.contains("Read-only file system"));
    assert!(refused, "{log}");
    engine.close().await;
}
