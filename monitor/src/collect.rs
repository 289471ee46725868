//! The log of a container that another engine's daemon runs: started by its shim with the container's output.
//!
//! containerd's `binary://` loggers get standard output as descriptor 3 and standard error as 4, and say on 5 that they
//! are ready. Shims keep the pipes open after the container's end, so that end is no end of the stream: whoever wants the
//! last line asks [`is_complete`], which looks into the pipes of the process in the file `pid`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::log::LogWriter;

/// First word of the command line.
const WORD: &str = "__log";
/// File beside the log with the collector's process id.
const PID: &str = "pid";
/// Descriptors of the container's output.
const STREAMS: [&str; 2] = ["3", "4"];

/// Copies what a container prints to its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collect {
    /// Folder of the log.
    pub logs: PathBuf,
    /// Most bytes of log to keep.
    pub log_limit: u64,
}

impl Collect {
    /// The command line, without the program's name: two words, as the shim makes one of each parameter of a URI.
    #[must_use]
    pub fn args(&self) -> [OsString; 2] {
        let mut value = format!("{}:", self.log_limit).into_bytes();
        value.extend(self.logs.as_os_str().as_bytes());
        [WORD.into(), OsString::from_vec(value)]
    }

    /// Reads the command line back.
    #[must_use]
    pub fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (word, value) = (args.next()?, args.next()?);
        let colon = value.as_bytes().iter().position(|byte| *byte == b':')?;
        let (limit, logs) = value.as_bytes().split_at(colon);
        let collect = Self {
            logs: OsStr::from_bytes(&logs[1..]).into(),
            log_limit: std::str::from_utf8(limit).ok()?.parse().ok()?,
        };
        (word == WORD && args.next().is_none()).then_some(collect)
    }

    /// Copies the descriptors that the shim gave until both end.
    ///
    /// # Errors
    /// When they are not there.
    pub fn run(&self) -> io::Result<()> {
        let own = PathBuf::from("/proc/self");
        let [stdout, stderr] = STREAMS.map(|fd| stream(&own, fd));
        let ready = File::options().write(true).open("/proc/self/fd/5")?;
        self.copy([stdout?, stderr?], ready)
    }

    /// A full disk loses log lines, not the container: the streams are read to their end in any case.
    fn copy(&self, streams: [File; 2], mut ready: File) -> io::Result<()> {
        let folder = File::open(&self.logs).ok();
        let _ = fs::write(self.logs.join(PID), std::process::id().to_string());
        let mut log = LogWriter::open(&self.logs, self.log_limit).ok();
        ready.write_all(b"1")?;
        drop(ready);
        let mut streams = Vec::from(streams);
        while !streams.is_empty() {
            let mut fds: Vec<_> = streams
                .iter()
                .map(|stream| PollFd::new(stream, PollFlags::IN))
                .collect();
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            drop(fds);
            // Before the first byte is taken out of a pipe, until it is in the log.
            let _ = folder.as_ref().map(File::lock);
            streams.retain_mut(|stream| drain(stream, log.as_mut()));
            let _ = folder.as_ref().map(File::unlock);
        }
        Ok(())
    }
}

/// Whether the log in `logs` holds all that its container, which is dead, has printed.
///
/// # Errors
/// When the log's folder or the collector's pipes cannot be looked at.
pub fn is_complete(logs: &Path) -> io::Result<bool> {
    let Some(pid) = absent(fs::read_to_string(logs.join(PID)))? else {
        return Ok(true);
    };
    let process = Path::new("/proc").join(pid);
    let line = absent(fs::read(process.join("cmdline")))?.unwrap_or_default();
    // It has ended, and may be another process now.
    if !line.ends_with(&[logs.as_os_str().as_bytes(), b"\0"].concat()) {
        return Ok(true);
    }
    for fd in STREAMS {
        if let Some(stream) = absent(stream(&process, fd))?
            && rustix::io::ioctl_fionread(&stream)? > 0
        {
            return Ok(false);
        }
    }
    // It takes the lock before it takes anything out of a pipe.
    let lock = absent(File::open(logs))?;
    Ok(lock.is_none_or(|lock| lock.try_lock_shared().is_ok()))
}

/// A reading end of a pipe that a process has.
fn stream(process: &Path, fd: &str) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = File::options();
    options.read(true).custom_flags(nonblocking);
    options.open(process.join("fd").join(fd))
}

/// Copies what is there; false when there will be no more.
fn drain(stream: &mut File, mut log: Option<&mut LogWriter>) -> bool {
    let mut buffer = [0; 16 << 10];
    for _ in 0..16 {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(size) => {
                if let Some(log) = &mut log {
                    let _ = log.write(&buffer[..size]);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().expect("pipe");
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        rustix::io::ioctl_fionbio(&reader, true).expect("non-blocking");
        (reader.into(), writer.into())
    }

    #[test]
    fn both_streams_are_read_to_their_end() {
        let dir = tempfile::tempdir().expect("temp dir");
        let collect = Collect {
            logs: dir.path().to_owned(),
            log_limit: 1 << 20,
        };
        let ((out, mut to_out), (err, mut to_err)) = (pipe(), pipe());
        let (mut is_ready, ready) = io::pipe().expect("pipe");
        let ready = OwnedFd::from(ready).into();
        let thread = std::thread::spawn(move || collect.copy([out, err], ready));
        assert_eq!(is_ready.read(&mut [0]).expect("ready"), 1);
        to_out.write_all(b"out ").expect("write");
        drop(to_out);
        to_err.write_all(b"err").expect("write");
        drop(to_err);
        thread.join().expect("thread").expect("copy");
        let log = crate::log::tail(dir.path(), 100).expect("tail");
        assert_eq!(log.len(), b"out err".len());
    }

    #[test]
    fn a_log_is_complete_when_its_collector_has_ended() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert!(is_complete(dir.path()).expect("look"), "there was none");
        fs::write(dir.path().join(PID), std::process::id().to_string()).expect("write");
        assert!(is_complete(dir.path()).expect("look"), "another process");
    }

    #[test]
    fn a_command_line_is_read_back() {
        let it = Collect {
            logs: "/a b:c".into(),
            log_limit: 12,
        };
        assert_eq!(Collect::from_args(it.args().into_iter()), Some(it));
        for wrong in [["__log", "/a"], ["__log", "x:/a"], ["__other", "1:/a"]] {
            assert_eq!(Collect::from_args(wrong.into_iter().map(Into::into)), None);
        }
    }
}
