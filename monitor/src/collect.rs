//! The log of a container that another engine's daemon runs: started by its shim with the container's output.
//!
//! containerd's `binary://` loggers get standard output as descriptor 3 and standard error as 4, and say on 5 that they
//! are ready. The log's folder stays locked until both have ended, so that a reader can wait for the last line.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};

use crate::log::LogWriter;

/// First word of the command line.
const WORD: &str = "__log";

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
        let output = ["/proc/self/fd/3", "/proc/self/fd/4"].map(File::open);
        let ready = File::options().write(true).open("/proc/self/fd/5")?;
        let [stdout, stderr] = output;
        self.copy([stdout?, stderr?], ready)
    }

    /// A full disk loses log lines, not the container: the streams are read to their end in any case.
    fn copy(&self, streams: [File; 2], mut ready: File) -> io::Result<()> {
        let folder = File::open(&self.logs);
        let _locked = folder.as_ref().map(File::lock);
        let mut log = LogWriter::open(&self.logs, self.log_limit).ok();
        ready.write_all(b"1")?;
        drop(ready);
        let mut streams = Vec::from(streams);
        let mut buffer = [0; 16 << 10];
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
            let readable: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut readable = readable.into_iter();
            streams.retain_mut(|stream| {
                !readable.next().unwrap_or(false)
                    || match stream.read(&mut buffer) {
                        Ok(0) => false,
                        Ok(size) => {
                            if let Some(log) = &mut log {
                                let _ = log.write(&buffer[..size]);
                            }
                            true
                        }
                        Err(error) => error.kind() == ErrorKind::Interrupted,
                    }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().expect("pipe");
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn both_streams_are_read_to_their_end_and_the_folder_is_locked_until_then() {
        let dir = tempfile::tempdir().expect("temp dir");
        let collect = Collect {
            logs: dir.path().to_owned(),
            log_limit: 1 << 20,
        };
        let ((out, mut to_out), (err, mut to_err)) = (pipe(), pipe());
        let (mut is_ready, ready) = pipe();
        let thread = std::thread::spawn(move || collect.copy([out, err], ready));
        assert_eq!(is_ready.read(&mut [0]).expect("ready"), 1);
        let folder = File::open(dir.path()).expect("folder");
        folder.try_lock_shared().expect_err("it copies");
        to_out.write_all(b"out ").expect("write");
        drop(to_out);
        to_err.write_all(b"err").expect("write");
        drop(to_err);
        thread.join().expect("thread").expect("copy");
        folder.try_lock_shared().expect("it is done");
        let log = crate::log::tail(dir.path(), 100).expect("tail");
        assert_eq!(log.len(), b"out err".len());
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
