//! Processes by descriptor: no pid can be reused while one is held.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::Pid;

/// A process, dead or alive; never another one with the same pid.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a process; `None` when there is none with this pid.
    ///
    /// # Errors
    /// When Linux refuses for another reason, such as too many open files.
    pub fn open(pid: Pid) -> io::Result<Option<Self>> {
        use rustix::io::Errno;
        let Some(pid) = rustix::process::Pid::from_raw(pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process is dead. Cancel-safe.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        // SAFETY: the descriptor is owned by the `AsyncFd`, which deregisters it before it is closed; nothing else
        // can close or replace it.
        let watched = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        watched.readable().await.map(drop)
    }
}

impl std::os::fd::AsFd for PidFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
