//! The files a run leaves in `.output` of its work folder (19.03 `utils.py`, `scandir`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

/// Larger files are not reported.
const SIZE_LIMIT: i64 = 100 * 1024 * 1024;
/// Deeper folders and more files than this are not looked at: the folder belongs to the user's code.
const DEPTH_LIMIT: usize = 32;
const COUNT_LIMIT: usize = 10_000;

/// Name below `.output` to time of the last change in nanoseconds.
pub type OutputFiles = BTreeMap<String, i128>;

/// Lists the files below `.output`. Names starting with a dot are passed over, and no symbolic link is followed.
#[must_use]
pub fn scan(work: &Path) -> OutputFiles {
    let mut files = OutputFiles::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(folder) = rustix::fs::openat(CWD, work.join(".output"), flags, Mode::empty()) {
        scan_folder(folder, "", 0, &mut files);
    }
    files
}

fn scan_folder(folder: OwnedFd, prefix: &str, depth: usize, files: &mut OutputFiles) {
    let Ok(entries) = Dir::read_from(&folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || files.len() >= COUNT_LIMIT {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
        else {
            continue;
        };
        let path = format!("{prefix}{name}");
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if stat.st_size <= SIZE_LIMIT => {
                let seconds = i128::from(stat.st_mtime);
                files.insert(
                    path,
                    seconds * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
                );
            }
            FileType::Directory if depth < DEPTH_LIMIT => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(&folder, entry.file_name(), flags, Mode::empty());
                if let Ok(inner) = opened {
                    scan_folder(inner, &format!("{path}/"), depth + 1, files);
                }
            }
            _ => {}
        }
    }
}

/// The names that are new, or newer than before.
#[must_use]
pub fn changed(before: &OutputFiles, after: &OutputFiles) -> Vec<String> {
    let newer = |(name, time): &(&String, &i128)| before.get(*name).is_none_or(|old| old < *time);
    let changed = after.iter().filter(newer);
    changed.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn new_and_changed_files_are_reported_and_hidden_ones_are_not() {
        let work = tempfile::tempdir().expect("a temporary folder");
        let output = work.path().join(".output");
        fs::create_dir_all(output.join("sub")).expect("made");
        fs::write(output.join("old.txt"), "1").expect("written");
        fs::write(output.join("kept.txt"), "1").expect("written");
        let mut before = scan(work.path());
        before.insert("old.txt".to_owned(), 0);
        fs::write(output.join("sub/new.txt"), "1").expect("written");
        fs::write(output.join(".hidden"), "1").expect("written");
        let after = scan(work.path());
        assert_eq!(changed(&before, &after), ["old.txt", "sub/new.txt"]);
    }

    #[test]
    fn a_link_to_another_folder_is_not_followed() {
        let work = tempfile::tempdir().expect("a temporary folder");
        let other = tempfile::tempdir().expect("a temporary folder");
        fs::write(other.path().join("secret"), "1").expect("written");
        std::os::unix::fs::symlink(other.path(), work.path().join(".output")).expect("linked");
        assert!(scan(work.path()).is_empty());
    }
}
