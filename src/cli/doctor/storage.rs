//! Folders: writing, space, how they are mounted; an overlay and the krunner layer, tried where they would be used.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, StatVfs, StatVfsMountFlags, openat, statvfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::{Finding, Needs};
use crate::cli::CommonArgs;
use crate::krunner::{KRUNNER, KrunnerLayer};

/// Free space below which images and files of kernels will soon not fit, bytes.
const LITTLE: u64 = 5 << 30;
/// Free space below which nothing fits, bytes.
const NOTHING: u64 = 256 << 20;
/// Free inodes below which images will soon not fit.
const FEW_INODES: u64 = 50_000;

/// Every check of this group.
pub(super) fn all(common: &CommonArgs, scratch_root: &Path, needs: Needs) -> Vec<Finding> {
    let state = existing(&common.state_dir);
    let mut all = vec![
        scratch_folder(scratch_root),
        writable("run-folder", "--run-dir", &common.run_dir),
        writable("state-folder", "--state-dir", &common.state_dir),
    ];
    for (check, folder) in [
        ("state-space", &common.state_dir),
        ("scratch-space", &scratch_root.to_owned()),
    ] {
        if let Ok(stat) = statvfs(existing(folder)) {
            all.push(space(check, folder, &stat));
        }
    }
    if let Ok(stat) = statvfs(state) {
        all.push(mount_options(&common.state_dir, stat.f_flag).needed(needs.containers));
    }
    all.push(overlay(try_in(state, try_overlay)).needed(needs.containers));
    all.push(krunner(try_in(state, try_krunner)));
    all
}

/// The folder, or the nearest above it that is there.
fn existing(folder: &Path) -> &Path {
    let mut all = folder.ancestors();
    all.find(|it| it.is_dir()).unwrap_or(Path::new("/"))
}

fn scratch_folder(root: &Path) -> Finding {
    if root.is_dir() {
        return writable("scratch-folder", "--scratch-root", root);
    }
    let place = root.display();
    Finding::warning(
        "scratch-folder",
        format!("{place} is not there: `serve` does not start without it"),
        format!("mkdir -p {place}, or name another folder with --scratch-root"),
    )
}

fn writable(check: &'static str, option: &str, folder: &Path) -> Finding {
    let place = existing(folder);
    // Access bits say yes to root also where nothing can be made.
    match try_in(place, |_| Ok(())) {
        Ok(()) => Finding::ok(check, folder.display().to_string()),
        Err(error) => Finding::failed(
            check,
            format!(
                "{}: cannot write to {}: {error}",
                folder.display(),
                place.display()
            ),
            format!("run as root, or name a folder of yours with {option}"),
        ),
    }
}

fn space(check: &'static str, folder: &Path, stat: &StatVfs) -> Finding {
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let gigabytes = format!("{}.{} GiB", free >> 30, ((free % (1 << 30)) * 10) >> 30);
    let place = folder.display();
    let remedy =
        "free some: `backendai-agent image rm` removes images; or put the folder on a larger disk";
    if stat.f_blocks == 0 {
        return Finding::ok(check, format!("{place} does not tell"));
    }
    // Some file systems make inodes as they go and tell of none.
    let few = stat.f_files > 0 && stat.f_favail < FEW_INODES;
    match free {
        0..NOTHING => Finding::failed(check, format!("{gigabytes} free at {place}"), remedy),
        NOTHING..LITTLE => Finding::warning(check, format!("{gigabytes} free at {place}"), remedy),
        _ if few => {
            let detail = format!("{} inodes free at {place}", stat.f_favail);
            Finding::warning(check, detail, remedy)
        }
        _ => Finding::ok(check, format!("{gigabytes} free at {place}")),
    }
}

fn mount_options(folder: &Path, flags: StatVfsMountFlags) -> Finding {
    let check = "state-mount";
    let place = folder.display();
    let remedy =
        "mount that file system without the option, or name a folder elsewhere with --state-dir";
    let is = |flag| flags.contains(flag);
    if is(StatVfsMountFlags::NOEXEC) {
        return Finding::failed(
            check,
            format!("{place} is mounted noexec: programs of images cannot run"),
            remedy,
        );
    }
    if is(StatVfsMountFlags::NOSUID) {
        return Finding::warning(
            check,
            format!("{place} is mounted nosuid: set-uid programs of images do not work"),
            remedy,
        );
    }
    Finding::ok(check, "programs of images can run")
}

/// A folder for a probe; removed when dropped.
pub(super) struct Probe(pub(super) PathBuf);

impl Probe {
    /// Makes one in the nearest folder above `place` that is there.
    pub(super) fn make(place: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".backendai-doctor-{}-{number}", std::process::id());
        let folder = existing(place).join(name);
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // What is left shows its name to whoever looks.
        let _stays = fs::remove_dir_all(&self.0);
    }
}

/// Does something in a new folder below `place`.
fn try_in(place: &Path, work: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let probe = Probe::make(place)?;
    work(&probe.0)
}

/// Mounts an overlay, reads from its lower folder and writes to its upper one. The mount is nowhere in the tree and ends
/// with its descriptor.
fn try_overlay(folder: &Path) -> io::Result<()> {
    for name in ["lower", "upper", "work"] {
        fs::create_dir(folder.join(name))?;
    }
    fs::write(folder.join("lower/below"), "below")?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, name) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        fsconfig_set_string(overlay.as_fd(), key, folder.join(name))?;
    }
    fsconfig_create(overlay.as_fd())?;
    let tree = fsmount(
        overlay.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let below = openat(
        &tree,
        "below",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut file = fs::File::from(below);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    file.write_all(b" and above")
}

fn overlay(tried: io::Result<()>) -> Finding {
    let check = "overlay";
    match tried {
        Ok(()) => Finding::ok(check, "an overlay can be mounted on the state folder"),
        Err(error) => Finding::failed(
            check,
            format!("mounting an overlay on the state folder: {error}"),
            "modprobe overlay; have the state folder on ext4, xfs or btrfs, not on an overlay or a network file system (--state-dir); run as root",
        ),
    }
}

/// Unpacks the runner and starts it.
fn try_krunner(folder: &Path) -> io::Result<()> {
    let root = KrunnerLayer::built_in()
        .ensure_unpacked(folder)
        .map_err(io::Error::other)?;
    let program = root.join(KRUNNER.trim_start_matches('/'));
    let status = Command::new(program)
        .arg("--help")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the runner ended with {status}")))
    }
}

fn krunner(tried: io::Result<()>) -> Finding {
    let check = "krunner";
    match tried {
        Ok(()) => Finding::ok(check, "the runner of kernels can be unpacked and runs"),
        Err(error) => Finding::failed(
            check,
            format!("the runner of kernels: {error}"),
            "have the state folder (--state-dir) where this user may write and programs may run, with an agent built for this machine",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    fn disk(free: u64, inodes: u64) -> StatVfs {
        let mut stat = statvfs("/").expect("a file system");
        (stat.f_frsize, stat.f_bavail, stat.f_blocks) = (1, free, 1 << 40);
        (stat.f_files, stat.f_favail) = (1 << 30, inodes);
        stat
    }

    #[test]
    fn little_space_is_a_warning_and_none_a_failure() {
        let place = Path::new("/state");
        let many = 1 << 20;
        for (stat, wanted) in [
            (disk(100 << 30, many), Status::Ok),
            (disk(1 << 30, many), Status::Warning),
            (disk(1 << 20, many), Status::Failed),
            (disk(100 << 30, 7), Status::Warning),
        ] {
            let found = space("state-space", place, &stat);
            assert_eq!(found.status, wanted, "{found:?}");
        }
        let found = space("state-space", place, &disk(3 << 29, many));
        assert!(found.detail.contains("1.5 GiB") && found.detail.contains("/state"));
        assert!(remedy(&found).contains("image rm"));
    }

    #[test]
    fn a_scratch_folder_that_is_not_there_is_to_be_made() {
        let root = tempfile::tempdir().expect("a folder");
        let found = scratch_folder(&root.path().join("none"));
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("mkdir -p") && remedy(&found).contains("--scratch-root"));
        assert_eq!(scratch_folder(root.path()).status, Status::Ok);
    }

    #[test]
    fn a_folder_that_is_not_there_is_judged_by_what_it_would_be_made_in() {
        let root = tempfile::tempdir().expect("a folder");
        let deep = root.path().join("a/b");
        assert_eq!(existing(&deep), root.path());
        assert_eq!(
            writable("state-folder", "--state-dir", &deep).status,
            Status::Ok
        );
        let found = writable("state-folder", "--state-dir", Path::new("/proc/none"));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("--state-dir"));
    }

    #[test]
    fn a_file_system_that_refuses_programs_is_told() {
        let place = Path::new("/state");
        let found = mount_options(place, StatVfsMountFlags::NOEXEC);
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("--state-dir"));
        let found = mount_options(place, StatVfsMountFlags::NOSUID);
        assert_eq!(found.status, Status::Warning);
        assert_eq!(
            mount_options(place, StatVfsMountFlags::empty()).status,
            Status::Ok
        );
    }

    #[test]
    fn an_overlay_that_is_refused_fails_with_what_may_help() {
        let found = overlay(Err(io::ErrorKind::Unsupported.into()));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("modprobe overlay"));
    }

    #[test]
    fn the_runner_is_unpacked_started_and_removed() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(krunner(try_in(root.path(), try_krunner)).status, Status::Ok);
        assert!(
            fs::read_dir(root.path())
                .expect("a folder")
                .next()
                .is_none()
        );
        let found = krunner(try_in(Path::new("/proc"), try_krunner));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("--state-dir"));
    }
}
