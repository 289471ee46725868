//! Limits on cgroup v2: the agent writes them into a cgroup of its own above the container's, and reads them back.

use std::fs;
use std::io;
use std::path::Path;

use crate::runtime::Limits;

/// Controllers that the limits need.
const CONTROLLERS: &str = "+cpu +cpuset +memory +pids";

/// Applies `limits` to the cgroup `path` below `root`; the cgroup exists.
pub(super) fn limit(root: &Path, path: &Path, limits: &Limits) -> io::Result<()> {
    let mut folder = root.to_owned();
    for part in path.strip_prefix("/").unwrap_or(path) {
        // A controller that is missing shows as a file that is missing below, if a limit needs it.
        for controller in CONTROLLERS.split(' ') {
            let _ = fs::write(folder.join("cgroup.subtree_control"), controller);
        }
        folder.push(part);
    }
    for (file, value) in files(limits) {
        set(&folder.join(file), &value)?;
    }
    Ok(())
}

/// The files to write, with their values.
fn files(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let quota = limits
            .cpu_quota_us
            .map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        all.push((
            "cpu.max",
            format!("{quota} {}", limits.cpu_period_us.unwrap_or(100_000)),
        ));
    }
    all.extend(limits.cpuset.clone().map(|cpus| ("cpuset.cpus", cpus)));
    all.extend(
        limits
            .memory_bytes
            .map(|bytes| ("memory.max", bytes.to_string())),
    );
    // Counted apart from memory here, and written even when it is 0.
    all.extend(
        limits
            .swap_bytes
            .map(|bytes| ("memory.swap.max", bytes.to_string())),
    );
    all.extend(limits.pids.map(|pids| ("pids.max", pids.to_string())));
    all
}

fn set(file: &Path, value: &str) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{} = {value}: {error}", file.display()),
        )
    };
    fs::write(file, value).map_err(named)?;
    let got = fs::read_to_string(file).map_err(named)?;
    // Memory is rounded down to pages.
    let same = match (got.trim().parse::<i64>(), value.parse::<i64>()) {
        (Ok(got), Ok(value)) => got <= value && value - got < 1 << 16,
        _ => got.trim() == value,
    };
    if same {
        Ok(())
    } else {
        Err(named(io::Error::other(format!(
            "Linux keeps {}",
            got.trim()
        ))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_written_and_no_swap_is_written_as_zero() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = dir.path().join("backendai/a");
        fs::create_dir_all(&folder).expect("folder");
        let limits = Limits {
            cpu_quota_us: Some(150_000),
            memory_bytes: Some(1 << 30),
            swap_bytes: Some(0),
            pids: Some(64),
            cpuset: Some("0-1".to_owned()),
            ..Limits::default()
        };
        limit(dir.path(), Path::new("/backendai/a"), &limits).expect("limit");
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("read");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("pids.max"), "64");
        assert_eq!(read("cpuset.cpus"), "0-1");
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let limits = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        let error = limit(dir.path(), Path::new("/gone/a"), &limits).expect_err("no such cgroup");
        assert!(error.to_string().contains("pids.max"), "{error}");
    }
}
