//! Processes by descriptor: no pid can be reused while one is held.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::proc::Proc;
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

    /// Opens the process that began at this time ([`Proc::began`]); `None` when it is dead.
    ///
    /// # Errors
    /// As [`Self::open`], and when the process cannot be looked at.
    pub fn of(pid: Pid, began: u64) -> io::Result<Option<Self>> {
        let process = Self::open(pid)?;
        // Looked at while it is held: its pid is not another one's meanwhile.
        let same = process.is_some() && Proc::default().began(pid)? == Some(began);
        Ok(process.filter(|_| same))
    }

    /// Sends a signal; a dead process is no error.
    ///
    /// # Errors
    /// When Linux refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Waits until the process is dead, blocking no longer than `limit`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it is not.
    pub fn await_end(&self, limit: Duration) -> io::Result<()> {
        let limit = Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // Each child of this program that ends interrupts this.
        let ended = rustix::io::retry_on_intr(|| {
            poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&limit))
        });
        match ended? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a killed process does not end; try again",
            )),
            _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began_and_its_death_is_no_error() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::try_from(child.id()).expect("Linux keeps pids below 2^22");
        let began = Proc::default().began(pid).expect("it can be looked at");
        let began = began.expect("it lives");
        let other = PidFd::of(pid, began + 1).expect("it can be looked at");
        assert!(other.is_none());
        let process = PidFd::of(pid, began).expect("it can be looked at");
        let process = process.expect("it lives");
        let early = process.await_end(Duration::ZERO).expect_err("it lives");
        assert_eq!(early.kind(), io::ErrorKind::TimedOut);
        process.signal(Signal::KILL).expect("sent");
        process.await_end(Duration::from_secs(60)).expect("killed");
        child.wait().expect("our own child");
        process
            .signal(Signal::KILL)
            .expect("a dead one is no error");
        let gone = PidFd::of(pid, began).expect("it can be looked at");
        assert!(gone.is_none());
    }
}
