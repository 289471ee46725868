//! What kernels are made with, and what they find at `/opt/backend.ai`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::{Settings, absolute, is_system};
use crate::kernel::plan::NoNewPrivileges;

/// What kernels are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Host reported as the kernel's, and used to reach its runner; `None` is the agent's host.
    pub host: Option<String>,
    /// Host ports for kernels.
    pub ports: RangeInclusive<u16>,
    /// Folder of the kernels' folders.
    pub scratch_root: PathBuf,
    /// Scratch folders on tmpfs.
    pub scratch_in_memory: bool,
    /// What confines the kernel's program.
    pub sandbox: Sandbox,
    /// Further arguments of the jail.
    pub jail_args: Vec<String>,
    /// `LOCAL_USER_ID` of images with the feature `uid-match`.
    pub uid: u32,
    /// Dead containers are kept.
    pub keep_dead: bool,
    /// What they get at `/opt/backend.ai`.
    pub krunner: KrunnerSource,
    /// Whose programs may not gain privileges by exec.
    pub no_new_privileges: NoNewPrivileges,
}

/// What kernels get at `/opt/backend.ai`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KrunnerSource {
    /// A path, or an image of a registry; `None` is the built-in layer.
    pub env: Option<String>,
    /// The operator's install of 19.03's agent, for environments that hold no runner.
    pub package: Option<PathBuf>,
}

/// What confines the kernel's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// The container alone.
    Docker,
    /// The container and Backend.AI's jail.
    Jail,
}

impl Settings {
    /// What kernels are made with.
    pub fn kernel(&mut self, state_dir: &Path) -> KernelOptions {
        let wanted = "low-high, ports from 1 to 65535 with low below high, as in 30000-31000";
        let jail_args = self.jail_args.iter();
        let jail_args = jail_args.map(|arg| arg.trim().to_owned()).collect();
        KernelOptions {
            host: self.text("kernel-host-override"),
            ports: self.parse("container-port-range", 30000..=31000, wanted, port_range),
            scratch_root: self
                .path("scratch-root")
                .unwrap_or_else(|| standard_scratch_root(is_system(), state_dir)),
            scratch_in_memory: self.flag("scratch-in-memory"),
            sandbox: self.parse(
                "sandbox-type",
                Sandbox::Docker,
                "docker or jail",
                |text| match text {
                    "docker" => Some(Sandbox::Docker),
                    "jail" => Some(Sandbox::Jail),
                    _ => None,
                },
            ),
            jail_args,
            uid: rustix::process::geteuid().as_raw(),
            keep_dead: self.flag("debug-skip-container-deletion"),
            krunner: KrunnerSource {
                env: self.text("krunner-env"),
                package: self.path("krunner-package").map(absolute),
            },
            no_new_privileges: self.parse(
                "no-new-privileges",
                NoNewPrivileges::default(),
                "nobody, uid-match or everybody",
                |text| match text {
                    "nobody" => Some(NoNewPrivileges::Nobody),
                    "uid-match" => Some(NoNewPrivileges::UidMatch),
                    "everybody" => Some(NoNewPrivileges::Everybody),
                    _ => None,
                },
            ),
        }
    }
}

/// The user's number: from the password file, else from whatever else the host asks (`getent`).
pub(super) fn user_id(name: &str) -> Option<u32> {
    let uid = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    };
    let file = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    file.lines().find_map(uid).or_else(|| {
        let getent = std::process::Command::new("getent")
            .args(["passwd", "--", name])
            .output()
            .ok()?;
        String::from_utf8_lossy(&getent.stdout)
            .lines()
            .find_map(uid)
    })
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-')?;
    let port = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port > 0);
    let (low, high) = (port(low)?, port(high)?);
    (low < high).then_some(low..=high)
}

/// 19.03's scratch root for the machine's agent; an ordinary user could not make that.
pub(super) fn standard_scratch_root(is_system: bool, state_dir: &Path) -> PathBuf {
    match is_system {
        true => "/var/cache/scratches".into(),
        false => state_dir.join("scratches"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_two_ports_in_order() {
        assert_eq!(port_range("30000-31000"), Some(30000..=31000));
        for bad in [
            "", "1", "0-5", "5-5", "6-5", "1-65536", "a-b", "1-2-3", "-1-5",
        ] {
            assert_eq!(port_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn users_are_found_by_name() {
        assert_eq!(user_id("root"), Some(0));
        assert_eq!(user_id("no-such-user-here"), None);
    }
}
