//! Linux, as far as krunner needs it: the only folder of the program with `unsafe`. Everything offered here is safe, small and owned.

pub(crate) mod epoll;
pub(crate) mod fd;
pub(crate) mod identity;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod signal;

use std::io;

/// The result of a libc call that reports failure as -1 and `errno`.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Seconds on the monotonic clock, as Python's `time.monotonic` counts them.
pub(crate) fn monotonic_seconds() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for a timespec; CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    // Seconds since the machine's start stay far below 2^52, so both conversions are exact enough.
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Gives memory that a flood needed back to Linux.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}
