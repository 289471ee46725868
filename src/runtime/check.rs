//! What every engine refuses in a request, in the same words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::process::Signal;

use super::{
    ContainerId, ContainerInfo, ContainerSpec, ContainerState, ExecSpec, Mount, MountKind,
    NetworkMode, Result, RuntimeError,
};

/// What can be said of a request without looking at the machine.
///
/// # Errors
/// [`RuntimeError::Invalid`], which names the part.
pub fn request(spec: &ContainerSpec) -> Result<()> {
    let wrong = |text: String| {
        Err(RuntimeError::Invalid(format!(
            "container {}: {text}",
            spec.id
        )))
    };
    if !is_id(&spec.id) {
        return Err(RuntimeError::Invalid(format!(
            "container id {:?} must be 1 to 128 letters, digits, '_', '-' or '.'",
            spec.id
        )));
    }
    if spec.args.is_empty() {
        return wrong("there is no program to run".to_owned());
    }
    let zero = |text: &str| text.contains('\0');
    if spec.args.iter().any(|arg| zero(arg))
        || spec
            .env
            .iter()
            .any(|(name, value)| zero(name) || zero(value))
    {
        return wrong("an argument or a variable has a zero byte".to_owned());
    }
    if let Some((name, _)) = spec
        .env
        .iter()
        .find(|(name, _)| name.is_empty() || name.contains('='))
    {
        return wrong(format!("{name:?} cannot be the name of a variable"));
    }
    if !spec.cwd.is_absolute() {
        return wrong(format!(
            "the working folder {} is not absolute",
            spec.cwd.display()
        ));
    }
    if let Some(mount) = spec.mounts.iter().find(|mount| !mount.target.is_absolute()) {
        return wrong(format!(
            "the mount target {} is not absolute",
            mount.target.display()
        ));
    }
    if let Some(device) = spec
        .devices
        .iter()
        .find(|device| !matches!(device.kind, 'c' | 'b'))
    {
        return wrong(format!(
            "device {:?} is of unknown kind {:?}; use c or b",
            device.path, device.kind
        ));
    }
    if spec.network != NetworkMode::Bridge && !spec.ports.is_empty() {
        return wrong(
            "ports are forwarded only with a network of its own on the bridge".to_owned(),
        );
    }
    Ok(())
}

/// Whether an id may be the name of a file or a part of an address: 1 to 128 letters, digits, `_`, `-` and `.`.
#[must_use]
pub fn is_id(id: &ContainerId) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !id.0.starts_with('.') && (1..=128).contains(&id.0.len()) && id.0.bytes().all(allowed)
}

/// The refusal of an id that another container has.
#[must_use]
pub fn exists(id: &ContainerId) -> RuntimeError {
    RuntimeError::Invalid(format!("container {id} exists already; remove it first"))
}

/// The refusal of a name that another container has.
#[must_use]
pub fn name_taken(spec: &ContainerSpec, holder: &str) -> RuntimeError {
    RuntimeError::Invalid(format!(
        "container {}: the name {} is taken by {holder}; remove that first",
        spec.id, spec.name
    ))
}

/// The number of a signal, if it is one.
///
/// # Errors
/// [`RuntimeError::Invalid`].
pub fn signal(number: i32) -> Result<Signal> {
    let wrong = || RuntimeError::Invalid(format!("{number} is not the number of a signal"));
    Signal::from_named_raw(number).ok_or_else(wrong)
}

/// Whether what is to be shown inside is there.
///
/// # Errors
/// [`RuntimeError::Invalid`], which names the first mount source that is not.
pub fn sources(spec: &ContainerSpec) -> Result<()> {
    for mount in &spec.mounts {
        if let MountKind::Bind(source) = &mount.kind
            && !source.exists()
        {
            let text = format!(
                "container {}: mount source {} does not exist",
                spec.id,
                source.display()
            );
            return Err(RuntimeError::Invalid(text));
        }
    }
    Ok(())
}

/// Whether a mount shows the program, which can be executed then. A program that is not told by its absolute path is
/// none of a mount's.
///
/// # Errors
/// [`RuntimeError::Invalid`] when what the mount shows cannot be executed.
pub fn program_in_mount(spec: &ContainerSpec) -> Result<bool> {
    let program = Path::new(&spec.args[0]);
    let shows = |mount: &&Mount| program.starts_with(&mount.target);
    let nearest = spec.mounts.iter().filter(shows);
    let nearest = nearest.max_by_key(|mount| mount.target.components().count());
    let Some(Mount {
        kind: MountKind::Bind(source),
        target,
        ..
    }) = nearest
    else {
        return Ok(false);
    };
    let source = match program.strip_prefix(target) {
        Ok(rest) if !rest.as_os_str().is_empty() => source.join(rest),
        _ => source.clone(),
    };
    match fs::metadata(source) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(true),
        Ok(_) => Err(not_executable(spec)),
        Err(_) => Err(no_program(spec)),
    }
}

/// The refusal of a program that is not there.
#[must_use]
pub fn no_program(spec: &ContainerSpec) -> RuntimeError {
    bad_program(spec, "is not there")
}

/// The refusal of a program that is something else.
#[must_use]
pub fn not_executable(spec: &ContainerSpec) -> RuntimeError {
    bad_program(spec, "cannot be executed")
}

fn bad_program(spec: &ContainerSpec, problem: &str) -> RuntimeError {
    let (id, program) = (&spec.id, &spec.args[0]);
    RuntimeError::Invalid(format!("container {id}: the program {program} {problem}"))
}

/// Whether a program can be run in the container as it is.
///
/// # Errors
/// [`RuntimeError::Invalid`], which says what is missing.
pub fn exec(container: &ContainerInfo, spec: &ExecSpec) -> Result<()> {
    if container.state != ContainerState::Running {
        let text = format!("container {} is not running", container.id);
        return Err(RuntimeError::Invalid(text));
    }
    if spec.args.is_empty() {
        let text = "there is no program to run";
        return Err(RuntimeError::Invalid(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{LabelMap, Limits, Seccomp};

    fn spec(program: &str, mounts: Vec<Mount>) -> ContainerSpec {
        ContainerSpec {
            id: ContainerId("a".to_owned()),
            name: "a".to_owned(),
            image: "a".to_owned(),
            args: vec![program.to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            hostname: None,
            mounts,
            devices: Vec::new(),
            limits: Limits::default(),
            network: NetworkMode::None,
            ports: Vec::new(),
            labels: LabelMap::new(),
            seccomp: Seccomp::Default,
            capabilities: Vec::new(),
            no_new_privileges: false,
            log_limit: 0,
        }
    }

    #[test]
    fn a_program_that_a_mount_shows_is_looked_at_and_others_are_the_images() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, "").expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        file("program", 0o755);
        file("text", 0o644);
        let bind = |source: &Path, target: &str| Mount {
            kind: MountKind::Bind(source.to_owned()),
            target: target.into(),
            read_only: true,
        };
        let place = folder.path();
        let mounts = vec![
            bind(place, "/opt"),
            bind(&place.join("program"), "/bin/one"),
            bind(&place.join("none"), "/opt/other"),
        ];
        for (program, shown) in [
            ("/opt/program", Ok(true)),
            ("/bin/one", Ok(true)),
            ("/bin/two", Ok(false)),
            ("program", Ok(false)),
            ("/opt/text", Err("cannot be executed")),
            ("/opt", Err("cannot be executed")),
            ("/opt/absent", Err("is not there")),
            ("/opt/other/program", Err("is not there")),
        ] {
            match (program_in_mount(&spec(program, mounts.clone())), shown) {
                (Ok(found), Ok(shown)) => assert_eq!(found, shown, "{program}"),
                (Err(error), Err(why)) => {
                    let text = error.to_string();
                    assert!(text.contains(program) && text.contains(why), "{text}");
                }
                other => panic!("{program}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_id_is_no_path() {
        for (id, allowed) in [
            ("a", true),
            ("kernel_1.x-2", true),
            ("", false),
            (".", false),
            ("../etc", false),
            ("a/b", false),
            ("a?b", false),
            (&"a".repeat(129), false),
        ] {
            let id = ContainerId(id.to_owned());
            assert_eq!(is_id(&id), allowed, "{id}");
            let spec = ContainerSpec {
                id,
                ..spec("/a", Vec::new())
            };
            assert_eq!(request(&spec).is_ok(), allowed, "{}", spec.id);
        }
    }
}
