//! Keeps the namespaces of an ordinary user's agent: this process is in them until nobody uses them any more.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// First word of the command line.
const WORD: &str = "__hold";

/// The holder of the namespaces whose files are in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The folder.
    pub folder: PathBuf,
}

impl Hold {
    /// The file that tells of the holder.
    pub const FILE: &str = "holder.json";
    /// The file that tells of the process that is the way out: its pid and when it began.
    pub const WAY_OUT: &str = "way-out";

    /// The command line, without the program's name.
    #[must_use]
    pub fn args(&self) -> [OsString; 2] {
        [WORD.into(), self.folder.clone().into()]
    }

    /// Reads the command line back.
    #[must_use]
    pub fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (word, folder) = (args.next()?, args.next()?);
        (word == WORD && args.next().is_none()).then(|| Self {
            folder: folder.into(),
        })
    }

    /// Waits until nobody uses the namespaces, and takes away what is only for them. Who comes then waits for the lock,
    /// finds no file and begins anew.
    ///
    /// # Errors
    /// When the lock cannot be had.
    pub fn run(&self) -> io::Result<()> {
        let users = File::options().read(true).open(self.folder.join("users"))?;
        rustix::io::retry_on_intr(|| flock(&users, FlockOperation::LockExclusive))?;
        let way_out = self.folder.join(Self::WAY_OUT);
        if let Ok(text) = fs::read_to_string(&way_out) {
            end(&text);
        }
        for file in [way_out, self.folder.join(Self::FILE)] {
            // Absent is what we want.
            let _ = fs::remove_file(file);
        }
        Ok(())
    }
}

/// Ends the process of this text, `PID TICKS`, unless it has ended and another one has its pid.
pub fn end(text: &str) {
    let Some((pid, began)) = text.trim().split_once(' ') else {
        return;
    };
    let Some(process) = pid.parse().ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(held) = pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    if begin_of(Path::new("/proc"), pid).as_deref() == Some(began) {
        // Gone already is what we want.
        let _ = pidfd_send_signal(held, Signal::KILL);
    }
}

/// When a process began, in ticks after boot.
#[must_use]
pub fn begin_of(proc: &Path, pid: &str) -> Option<String> {
    let stat = fs::read_to_string(proc.join(pid).join("stat")).ok()?;
    // The command in parentheses may hold blanks and parentheses of its own.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_process_that_is_named_is_ended_and_none_that_has_its_pid() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let pid = child.id().to_string();
        let began = begin_of(Path::new("/proc"), &pid).expect("it lives");
        end(&format!("{pid} 1"));
        end("no process");
        assert!(child.try_wait().expect("our child").is_none());
        end(&format!("{pid} {began}\n"));
        assert!(!child.wait().expect("our child").success());
    }

    #[test]
    fn a_holder_waits_for_the_last_user_and_takes_its_file_away() {
        let dir = tempfile::tempdir().expect("temp dir");
        let users = File::create(dir.path().join("users")).expect("create");
        flock(&users, FlockOperation::LockShared).expect("lock");
        fs::write(dir.path().join(Hold::FILE), "{}").expect("write");
        let hold = Hold {
            folder: dir.path().to_owned(),
        };
        assert_eq!(
            Hold::from_args(hold.args().into_iter()).as_ref(),
            Some(&hold)
        );
        let (began, wait) = std::sync::mpsc::channel();
        let holder = std::thread::spawn(move || {
            began.send(()).expect("the test waits");
            hold.run()
        });
        wait.recv().expect("the thread runs");
        assert!(dir.path().join(Hold::FILE).exists());
        drop(users);
        holder.join().expect("no panic").expect("hold");
        assert!(!dir.path().join(Hold::FILE).exists());
    }
}
