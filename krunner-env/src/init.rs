//! `krunner init`: what 19.03's entrypoint.sh and su-exec do, without a shell or any tool in the image.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::accounts::{self, User};
use crate::log;
use crate::sys::process::{self, Program};
use crate::sys::{identity, load};

/// The user id of 19.03's entrypoint where the agent gives none.
const DEFAULT_UID: u32 = 9001;
const AGENT_SOCKET: &str = "/opt/backend.ai/agent.sock";

/// Who to become, from `LOCAL_USER_ID`, `LOCAL_GROUP_ID`, `ADDITIONAL_GIDS`.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, text: String| {
            text.trim()
                .parse()
                .map_err(|_| format!("{name}={text} is not a number"))
        };
        let uid = variable("LOCAL_USER_ID")
            .map_or(Ok(DEFAULT_UID), |text| number("LOCAL_USER_ID", text))?;
        let gid =
            variable("LOCAL_GROUP_ID").map_or(Ok(uid), |text| number("LOCAL_GROUP_ID", text))?;
        let more = variable("ADDITIONAL_GIDS").unwrap_or_default();
        let more = more.split(',').filter(|part| !part.trim().is_empty());
        let more = more
            .map(|part| number("ADDITIONAL_GIDS", part.to_owned()))
            .collect::<Result<Vec<u32>, _>>()?;
        Ok(Self {
            uid,
            gid,
            groups: std::iter::once(gid).chain(more).collect(),
        })
    }
}

/// Sets up the user and becomes it. Not started as root: nothing is to be done. What an image does not allow (a read-only root)
/// is noted and passed over; only to stay root by accident is an error.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn set_up(home: &Path) -> Result<(), String> {
    if !identity::is_root() {
        return Ok(());
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "the container's environment is how agents tell the user; it is read once, here"
    )]
    let identity = Identity::from_variables(|name| std::env::var(name).ok())?;
    let shell = ["/bin/bash", "/bin/ash"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/bin/sh");
    refresh_linker_cache();
    if identity.uid == 0 {
        return Ok(());
    }
    let user = User {
        uid: identity.uid,
        gid: identity.gid,
        home: &home.to_string_lossy(),
        shell,
    };
    edit(Path::new("/etc/passwd"), |old| accounts::passwd(old, &user));
    edit(Path::new("/etc/group"), |old| {
        accounts::group(old, user.gid)
    });
    if let Err(error) = std::os::unix::fs::chown(AGENT_SOCKET, Some(identity.uid), None)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::note(&format!("{AGENT_SOCKET} stays with its owner: {error}"));
    }
    let Identity { uid, gid, groups } = identity;
    identity::become_user(uid, gid, &groups).map_err(|error| {
        format!("cannot become user {uid}, group {gid}: {error}; give CAP_SETUID and CAP_SETGID, or LOCAL_USER_ID=0")
    })
}

/// GPU images rely on this side effect of 19.03's entrypoint: libraries mounted into the container become known to the linker.
/// It runs beside the start, and nobody waits for it. Where nothing of the host is mounted, the image's own cache is rarely
/// behind, and there is time.
fn refresh_linker_cache() {
    let Some(ldconfig) = ["/sbin/ldconfig", "/usr/sbin/ldconfig"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
    else {
        return;
    };
    let argv = [OsString::from(ldconfig)];
    let program = Program {
        file: ldconfig,
        argv: &argv,
        environment: &[],
        folder: Path::new("/"),
        fds: &[],
        patient: !load::host_files_are_mounted(),
    };
    if let Err(error) = process::spawn(&program) {
        log::note(&format!("{} does not start: {error}", ldconfig.display()));
    }
}

fn edit(path: &Path, change: impl Fn(&str) -> String) {
    if let Err(error) = try_edit(path, change) {
        log::note(&format!("{} stays as it is: {error}", path.display()));
    }
}

/// Writes beside the file and renames, so that nobody ever reads half of it.
fn try_edit(path: &Path, change: impl Fn(&str) -> String) -> io::Result<()> {
    let old = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let new = change(&old);
    if new == old {
        return Ok(());
    }
    let beside = path.with_extension("krunner");
    let written = std::fs::write(&beside, new)
        .and_then(|()| std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o644)))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _absent = std::fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(variables: &[(&str, &str)]) -> Result<Identity, String> {
        Identity::from_variables(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_variables_it_is_9001() {
        assert_eq!(
            identity(&[]),
            Ok(Identity {
                uid: 9001,
                gid: 9001,
                groups: vec![9001]
            })
        );
    }

    #[test]
    fn the_group_follows_the_user_unless_given() {
        assert_eq!(
            identity(&[("LOCAL_USER_ID", "1000")]),
            Ok(Identity {
                uid: 1000,
                gid: 1000,
                groups: vec![1000]
            })
        );
        let all = identity(&[
            ("LOCAL_USER_ID", "1000"),
            ("LOCAL_GROUP_ID", "50"),
            ("ADDITIONAL_GIDS", "42, 43,"),
        ]);
        assert_eq!(
            all,
            Ok(Identity {
                uid: 1000,
                gid: 50,
                groups: vec![50, 42, 43]
            })
        );
    }

    #[test]
    fn nonsense_is_an_error_that_names_it() {
        assert_eq!(
            identity(&[("LOCAL_USER_ID", "me")]),
            Err("LOCAL_USER_ID=me is not a number".into())
        );
    }

    #[test]
    fn a_file_is_replaced_whole_and_stays_readable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("passwd");
        try_edit(&path, |old| format!("{old}line\n")).expect("the folder can be written to");
        try_edit(&path, |old| format!("{old}line\n")).expect("the folder can be written to");
        assert_eq!(
            std::fs::read_to_string(&path).expect("the file is there"),
            "line\nline\n"
        );
        let mode = path
            .metadata()
            .expect("the file is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 1);
    }
}
