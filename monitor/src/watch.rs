//! From the start of a container to its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};

use crate::log::LogWriter;

/// First word of the command line, by which people and tools find monitors.
const WORD: &str = "__monitor";

/// A container whose first process is a child of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Folder to write `exit.json` into.
    pub folder: PathBuf,
    /// The container's first process.
    pub init: i32,
    /// Folder of the log.
    pub logs: PathBuf,
    /// Most bytes of log to keep.
    pub log_limit: u64,
    /// The cgroup's file that counts kills for want of memory.
    pub oom_counter: Option<PathBuf>,
}

impl Watch {
    /// The command line, without the program's name.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut args = vec![
            WORD.into(),
            self.folder.clone().into(),
            self.init.to_string().into(),
            self.logs.clone().into(),
            self.log_limit.to_string().into(),
        ];
        args.extend(self.oom_counter.clone().map(OsString::from));
        args
    }

    /// Reads the command line back.
    #[must_use]
    pub fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let word = args.next()?;
        let watch = Self {
            folder: args.next()?.into(),
            init: args.next()?.to_str()?.parse().ok()?,
            logs: args.next()?.into(),
            log_limit: args.next()?.to_str()?.parse().ok()?,
            oom_counter: args.next().map(PathBuf::from),
        };
        (word == WORD && args.next().is_none()).then_some(watch)
    }

    /// Copies `output`, which must not block, to the log until the first process ends; then writes how it ended.
    ///
    /// # Errors
    /// When the first process is no child of this one, or its end cannot be written.
    pub fn run(&self, output: &File) -> io::Result<()> {
        let init = Pid::from_raw(self.init).ok_or(ErrorKind::InvalidInput)?;
        let ended = pidfd_open(init, PidfdFlags::empty())?;
        // A full disk loses log lines, not the container.
        let mut log = LogWriter::open(&self.logs, self.log_limit).ok();
        let mut open = true;
        loop {
            let mut fds = [
                PollFd::new(&ended, PollFlags::IN),
                PollFd::new(output, PollFlags::IN),
            ];
            let watched = if open { 2 } else { 1 };
            match poll(&mut fds[..watched], None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [over, readable] = fds.map(|fd| !fd.revents().is_empty());
            if open && readable {
                open = copy(output, log.as_mut(), 16);
            }
            // All others died with the first process: what is in the pipe is the rest.
            if over {
                copy(output, log.as_mut(), usize::MAX);
                return self.finish(init);
            }
        }
    }

    fn finish(&self, init: Pid) -> io::Result<()> {
        let code = waitpid(Some(init), WaitOptions::empty())?.map_or(255, |(_, end)| code(end));
        let oom_killed = self
            .oom_counter
            .as_ref()
            .is_some_and(|file| oom_kills(file) > 0);
        let part = self.folder.join(".exit.json.part");
        let mut file = File::create(&part)?;
        write!(file, r#"{{"code":{code},"oom_killed":{oom_killed}}}"#)?;
        file.sync_all()?;
        fs::rename(part, self.folder.join("exit.json"))
    }
}

fn code(end: WaitStatus) -> i32 {
    let signal = end.terminating_signal().map(|signal| 128 + signal);
    end.exit_status().or(signal).unwrap_or(255)
}

/// Copies at most so many buffers; false when nobody can print any more.
fn copy(mut output: &File, mut log: Option<&mut LogWriter>, buffers: usize) -> bool {
    let mut buffer = [0; 16 << 10];
    for _ in 0..buffers {
        match output.read(&mut buffer) {
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

/// How many processes Linux killed for want of memory, by `memory.oom_control` (cgroup v1) or `memory.events` (v2) of a
/// cgroup; 0 when that cannot be read.
#[must_use]
pub fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    fn watch(dir: &Path, init: i32) -> Watch {
        Watch {
            folder: dir.to_owned(),
            init,
            logs: dir.to_owned(),
            log_limit: 1 << 20,
            oom_counter: Some(dir.join("oom")),
        }
    }

    /// Watches a shell script; gives `exit.json` and the log.
    fn end_of(script: &str, oom: &str) -> (String, String) {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("oom"), oom).expect("write");
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let output = OwnedFd::from(child.stdout.take().expect("piped"));
        rustix::io::ioctl_fionbio(&output, true).expect("non-blocking");
        let pid = i32::try_from(child.id()).expect("pid");
        watch(dir.path(), pid)
            .run(&File::from(output))
            .expect("watch");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("read");
        (read("exit.json"), read("log"))
    }

    #[test]
    fn all_output_is_in_the_log_when_the_end_is_written() {
        let (exit, log) = end_of(
            "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 7",
            "",
        );
        assert_eq!(exit, r#"{"code":7,"oom_killed":false}"#);
        assert_eq!(log.lines().count(), 3000);
        assert!(log.ends_with("\n2999\n"));
    }

    #[test]
    fn a_process_that_closed_its_output_is_waited_for_all_the_same() {
        let (exit, log) = end_of("echo a; exec >&-; sleep 0.1; kill -15 $$", "");
        assert_eq!(
            (exit.as_str(), log.as_str()),
            (r#"{"code":143,"oom_killed":false}"#, "a\n")
        );
    }

    #[test]
    fn a_kill_for_want_of_memory_counts_however_the_first_process_ended() {
        let (exit, _) = end_of("exit 0", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        assert_eq!(exit, r#"{"code":0,"oom_killed":true}"#);
    }

    #[test]
    fn a_command_line_is_read_back() {
        let mut it = watch(Path::new("/a b"), 12);
        assert_eq!(Watch::from_args(it.args().into_iter()).as_ref(), Some(&it));
        it.oom_counter = None;
        assert_eq!(Watch::from_args(it.args().into_iter()).as_ref(), Some(&it));
        assert_eq!(
            Watch::from_args(["__monitor".into(), "/a".into()].into_iter()),
            None
        );
    }
}
