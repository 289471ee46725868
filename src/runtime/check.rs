//! What every engine refuses in a request, in the same words.

use super::{
    ContainerId, ContainerInfo, ContainerSpec, ContainerState, ExecSpec, MountKind, NetworkMode,
    Result, RuntimeError,
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

/// The refusal of an id that is none.
#[must_use]
pub fn invalid_id(id: &ContainerId) -> RuntimeError {
    RuntimeError::Invalid(format!(
        "container id {id:?} must be 1 to 128 letters, digits, '_', '-' or '.'"
    ))
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
            assert_eq!(is_id(&ContainerId(id.to_owned())), allowed, "{id}");
        }
    }
}
