//! Children: started in a session of their own, reaped by pid, so that PID 1 may reap strangers in the same place.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;

/// A process id. Children of [`spawn`] lead a process group of the same number.
pub(crate) type Pid = libc::pid_t;

/// What to start.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// The file to execute, found already.
    pub(crate) file: &'a Path,
    /// The arguments, the name first.
    pub(crate) argv: &'a [std::ffi::OsString],
    /// The whole environment, `NAME=value`.
    pub(crate) environment: &'a [std::ffi::OsString],
    /// Where to start; if it is not there the child starts in the runner's own folder.
    pub(crate) folder: &'a Path,
    /// Descriptors and the numbers that the child gets them under; all others are closed on exec.
    pub(crate) fds: &'a [(&'a OwnedFd, i32)],
    /// Nobody waits for it: on a busy machine it begins later.
    pub(crate) patient: bool,
}

/// Where a process's share in the choice of whom Linux ends when memory is short is read and set.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The most that Linux takes there.
const OOM_SCORE_MOST: i32 = 1000;
/// How much a child's share is above the runner's, in thousandths of the memory that there is: of 64 MiB it is four times what
/// the runner needs.
const OOM_SHARE: i32 = 100;

/// Starts a child: own session and process group, killed when the runner dies, default signal actions, nothing blocked, and
/// ended before the runner when the kernel is out of memory.
/// If the file cannot be executed, the child says so on its descriptor 2 and ends with 127.
///
/// # Errors
/// Linux has no room for another process, or an argument contains a zero byte.
pub(crate) fn spawn(program: &Program<'_>) -> io::Result<Pid> {
    let file = text(program.file.as_os_str())?;
    let argv = program
        .argv
        .iter()
        .map(|arg| text(arg))
        .collect::<io::Result<Vec<_>>>()?;
    let environment = program
        .environment
        .iter()
        .map(|pair| text(pair))
        .collect::<io::Result<Vec<_>>>()?;
    let folder = text(program.folder.as_os_str())?;
    let complaint = format!("krunner: cannot execute {}\n", program.file.display());
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|item| item.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let child = Child {
        file: &file,
        argv: pointers(&argv),
        environment: pointers(&environment),
        folder: &folder,
        fds: program
            .fds
            .iter()
            .map(|(fd, number)| (fd.as_raw_fd(), *number))
            .collect(),
        moved: vec![-1; program.fds.len()],
        patient: program.patient,
        complaint: complaint.as_bytes(),
        parent: std::process::id(),
        no_signals: super::signal::empty_set(),
    };
    // SAFETY: krunner has one thread, so the child may do anything that needs no other thread; it only makes system calls.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        child.become_program();
    }
    Ok(pid)
}

/// All that the child needs, made before the fork.
struct Child<'a> {
    file: &'a CString,
    argv: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    folder: &'a CString,
    fds: Vec<(i32, i32)>,
    moved: Vec<i32>,
    patient: bool,
    complaint: &'a [u8],
    parent: u32,
    no_signals: libc::sigset_t,
}

impl Child<'_> {
    fn become_program(mut self) -> ! {
        /// Above every number that a child's descriptor may be wanted under.
        const SAFE: i32 = 16;
        // SAFETY: only system calls with valid arguments, in a process with one thread; all pointers point to
        // zero-terminated strings or null-terminated lists that live in `self` or in the caller's frame.
        unsafe {
            libc::setsid();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().unsigned_abs() != self.parent {
                libc::_exit(127);
            }
            go_before_the_runner();
            if self.patient {
                super::load::wait_until_free();
            }
            for ((fd, _), moved) in self.fds.iter().zip(&mut self.moved) {
                *moved = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, SAFE);
            }
            for ((_, number), moved) in self.fds.iter().zip(&self.moved) {
                libc::dup2(*moved, *number);
            }
            // Ignored by Rust's start-up code (SIGPIPE) or by who started us; programs expect the defaults.
            for signal in 1..=libc::SIGRTMAX() {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const self.no_signals,
                std::ptr::null_mut(),
            );
            libc::chdir(self.folder.as_ptr());
            libc::execve(
                self.file.as_ptr(),
                self.argv.as_ptr(),
                self.environment.as_ptr(),
            );
            libc::write(2, self.complaint.as_ptr().cast(), self.complaint.len());
            libc::_exit(127)
        }
    }
}

/// Without it the runner, larger than a small program, would be taken for many of those, and the kernel with it. Where Linux
/// refuses, all stay equal.
fn go_before_the_runner() {
    let score = std::fs::read_to_string(OOM_SCORE).ok();
    if let Some(score) = score.and_then(|score| score.trim().parse::<i32>().ok()) {
        let more = score.saturating_add(OOM_SHARE).min(OOM_SCORE_MOST);
        let _ = std::fs::write(OOM_SCORE, more.to_string());
    }
}

fn text(value: &OsStr) -> io::Result<CString> {
    CString::new(value.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a zero byte in a command"))
}

/// Reaps one child that has ended, ours or a stranger's: its pid, and its exit code or minus the signal's number.
pub(crate) fn reap() -> Option<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let code = if libc::WIFSIGNALED(status) {
        -libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    Some((pid, code))
}

/// Sends a signal to the process group of a child. A group that is gone is no error. `reaped`: the child is, the rest
/// of its group perhaps not.
pub(crate) fn signal_group(leader: Pid, signal: libc::c_int, reaped: bool) {
    if leader <= 1 {
        return;
    }
    // SAFETY: no pointers.
    let missed = unsafe { libc::kill(-leader, signal) } != 0;
    if missed && !reaped {
        // A child that has not come to its setsid yet; until it is reaped the number is its own.
        // SAFETY: no pointers.
        unsafe { libc::kill(leader, signal) };
    }
}

/// Sends a signal to a child that has not been reaped.
pub(crate) fn signal(pid: Pid, signal: libc::c_int) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Makes orphans of our children ours to reap, as they are for PID 1 anyway.
pub(crate) fn adopt_orphans() {
    if std::process::id() != 1 {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::load;
    use super::*;

    #[test]
    fn out_of_memory_a_child_goes_before_the_runner() {
        let own = std::fs::read_to_string(OOM_SCORE).expect("a score");
        let own: i32 = own.trim().parse().expect("a number");
        let look = format!(
            "read score < {OOM_SCORE}; [ $score -gt {own} ] || [ $score = {OOM_SCORE_MOST} ]"
        );
        let pid = spawn(&Program {
            file: Path::new("/bin/sh"),
            argv: &["sh".into(), "-c".into(), look.into()],
            environment: &[],
            folder: Path::new("/"),
            fds: &[],
            patient: false,
        })
        .expect("a child");
        let mut status = -1;
        // SAFETY: `status` is a valid place.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(status, 0);
    }

    /// Programs that want to run all the time; threads of this process would not, while they begin and while it forks.
    struct Spinners(Vec<std::process::Child>);

    impl Spinners {
        /// Comes back when all have begun.
        fn start() -> Self {
            let spinner = || {
                let mut shell = std::process::Command::new("sh");
                // Should nobody end it, the limit does.
                shell.args(["-c", "ulimit -t 10; echo; while :; do :; done"]);
                shell.stdout(std::process::Stdio::piped());
                shell.spawn().expect("a shell")
            };
            let mut all = Self((0..8 * load::processors()).map(|_| spinner()).collect());
            for spinner in &mut all.0 {
                let output = spinner.stdout.as_mut().expect("a pipe");
                io::Read::read_exact(output, &mut [0]).expect("it begins");
            }
            all
        }
    }

    impl Drop for Spinners {
        fn drop(&mut self) {
            for spinner in &mut self.0 {
                let _ = spinner.kill();
                let _ = spinner.wait();
            }
        }
    }

    /// A lower bound: more than the processors can do wants to run all the time.
    #[test]
    fn a_patient_child_lets_others_go_first_but_not_for_ever() {
        let spinners = Spinners::start();
        let begun = Instant::now();
        let pid = spawn(&Program {
            file: Path::new("/bin/true"),
            argv: &["true".into()],
            environment: &[],
            folder: Path::new("/"),
            fds: &[],
            patient: true,
        })
        .expect("a child");
        let mut status = -1;
        // SAFETY: `status` is a valid place.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let took = begun.elapsed();
        drop(spinners);
        assert_eq!(status, 0);
        assert!(took >= load::PATIENCE, "{took:?}");
    }
}
