//! Descriptors: pipes, reads and writes that never block.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// Bytes that our pipes hold where Linux allows it: fewer wake-ups under a flood.
const PIPE_SIZE: libc::c_int = 256 << 10;

/// A pipe: reading end, writing end; both closed on exec and blocking.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both are new and ours alone.
    let ends = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    // SAFETY: no pointers. A refusal leaves the standard size, which is good too.
    unsafe { libc::fcntl(fds[0], libc::F_SETPIPE_SZ, PIPE_SIZE) };
    Ok(ends)
}

/// Makes reads and writes on this open file return "would block" instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers, the descriptor is open.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
        .map(|_| ())
}

/// Reads once; `Ok(None)` if there is nothing now, `Ok(Some(0))` at the end.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the buffer is valid for its length, the descriptor is open.
        let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if let Some(result) = settled(count) {
            return result;
        }
    }
}

/// Writes once; `Ok(None)` if there is no room now.
pub(crate) fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the data is valid for its length, the descriptor is open.
        let count = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
        if let Some(result) = settled(count) {
            return result;
        }
    }
}

/// `None`: interrupted by a signal, try again.
fn settled(count: libc::ssize_t) -> Option<io::Result<Option<usize>>> {
    if let Ok(count) = usize::try_from(count) {
        return Some(Ok(Some(count)));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::Interrupted => None,
        io::ErrorKind::WouldBlock => Some(Ok(None)),
        _ => Some(Err(error)),
    }
}

/// Whether a write of up to 4096 bytes (`PIPE_BUF`) would not wait, whatever the open file's own mode is.
pub(crate) fn takes_a_page(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1
        && poll.revents & libc::POLLOUT != 0
        && poll.revents & (libc::POLLERR | libc::POLLHUP) == 0
}

/// A descriptor from which only the end of file can be read: `/dev/null`, or in a root without devices a closed pipe.
pub(crate) fn empty_input() -> io::Result<OwnedFd> {
    match std::fs::File::open("/dev/null") {
        Ok(file) => Ok(file.into()),
        Err(_) => pipe().map(|(reader, _closed)| reader),
    }
}

/// Opens `/dev/null`, or a closed pipe, for each of the descriptors 0 to 2 that is not open,
/// so that no socket of ours ever gets such a number.
pub(crate) fn fill_standard_fds() {
    for number in 0..=2 {
        // SAFETY: no pointers; asking about a closed descriptor is allowed.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0
            && let Ok(null) = empty_input()
            && null.as_raw_fd() == number
        {
            std::mem::forget(null);
        }
    }
}

/// The process's standard output.
pub(crate) fn stdout() -> impl AsFd {
    io::stdout()
}

/// The process's standard error.
pub(crate) fn stderr() -> impl AsFd {
    io::stderr()
}
