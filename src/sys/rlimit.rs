//! Resource limits of this process: taken as far as Linux grants them.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of files this process may open to what it may have at most; gives the new number, absent when
/// there is no limit.
///
/// # Errors
/// When Linux refuses what it said it would grant.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let limit = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(maximum)
}

/// The nearest number of open files to `wanted` that a child of ours may have: without CAP_SYS_RESOURCE a hard limit
/// can only be lowered.
#[must_use]
pub fn open_files_at_most(wanted: u64) -> u64 {
    getrlimit(Resource::Nofile)
        .maximum
        .map_or(wanted, |maximum| wanted.min(maximum))
}

/// Most open files of another process; `None` when it is gone, or has no limit.
#[must_use]
pub fn open_files_of(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    hard_limit(&limits, "Max open files")
}

/// A hard limit out of the text of `/proc/<pid>/limits`; `None` when there is none.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_limit_is_read_unless_there_is_none() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n\
                    Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(hard_limit(text, "Max open files"), Some(524_288));
        assert_eq!(hard_limit(text, "Max locked memory"), None);
        assert_eq!(hard_limit(text, "Max processes"), None);
    }

    #[test]
    fn this_process_gets_as_many_files_as_it_may_have() {
        let granted = raise_open_files().expect("a limit within the hard limit");
        assert_eq!(getrlimit(Resource::Nofile).current, granted);
    }

    #[test]
    fn more_than_the_hard_limit_is_never_asked_for() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(open_files_at_most(64), 64);
        assert_eq!(open_files_at_most(u64::MAX), hard.unwrap_or(u64::MAX));
    }
}
