//! How busy the machine is: work that nobody waits for lets the start of other kernels go first.

use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks at the machine.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Work waits this long for a free processor, and then goes on all the same.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Where Linux tells it.
const LOADAVG: &str = "/proc/loadavg";

/// Whether more threads want to run than two for each processor: so it is while many kernels start at once, or on a node
/// whose kernels compute on all processors. A machine that does not tell counts as free.
pub(crate) fn is_busy() -> bool {
    let running = std::fs::read_to_string(LOADAVG)
        .ok()
        .and_then(|text| running(&text));
    running.is_some_and(|running| running > 2 * processors())
}

/// All that the machine has, also where this process is kept to some of them.
pub(super) fn processors() -> libc::c_long {
    // SAFETY: no pointers.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1)
}

/// Sleeps until the machine has a processor free, or [`PATIENCE`] is over.
pub(crate) fn wait_until_free() {
    let latest = Instant::now() + PATIENCE;
    while is_busy() && Instant::now() < latest {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The running threads of `/proc/loadavg`: `0.88 3.85 12.83 5/321 7777` has five.
fn running(loadavg: &str) -> Option<libc::c_long> {
    let (running, _) = loadavg.split_whitespace().nth(3)?.split_once('/')?;
    running.parse().ok()
}

/// Whether the engine has mounted something into the image where libraries may lie: a GPU's driver, say.
pub(crate) fn host_files_are_mounted() -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|text| text.lines().filter_map(mount_point).any(may_hold_libraries))
}

fn mount_point(line: &str) -> Option<&str> {
    line.split(' ').nth(4)
}

/// Every container has mounts in these; programs do not look for libraries there.
fn may_hold_libraries(mount_point: &str) -> bool {
    const OTHERS: [&str; 8] = [
        "/proc",
        "/sys",
        "/dev",
        "/home",
        "/tmp",
        "/run",
        "/etc",
        "/opt/backend.ai",
    ];
    let path = Path::new(mount_point);
    path != Path::new("/") && !OTHERS.iter().any(|other| path.starts_with(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_threads_are_found() {
        assert_eq!(running("0.88 3.85 12.83 5/321 7777\n"), Some(5));
        assert_eq!(running("0.88 3.85"), None);
        assert_eq!(running(""), None);
    }

    #[test]
    fn a_driver_s_files_are_told_from_the_mounts_that_every_container_has() {
        let line = "36 35 98:0 /mnt1 /usr/lib/x86_64-linux-gnu/libcuda.so.1 rw,noatime - ext4 /dev/root rw";
        assert!(mount_point(line).is_some_and(may_hold_libraries));
        for usual in [
            "/",
            "/proc/sys",
            "/sys/fs/cgroup",
            "/dev/shm",
            "/home/work/data",
            "/etc/hosts",
            "/opt/backend.ai/bin/su-exec",
        ] {
            assert!(!may_hold_libraries(usual), "{usual}");
        }
        assert!(may_hold_libraries("/opt/cuda"));
        assert!(may_hold_libraries("/homestead"));
    }
}
