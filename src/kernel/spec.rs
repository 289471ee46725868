//! What an image says of its kernels in its labels: language, user, service ports (19.03 agent, `_create_kernel`).

use crate::agent::AgentError;
use crate::agent::request::ServicePort;
use crate::runtime::LabelMap;

/// The runner's command socket.
pub(super) const REPL_IN: u16 = 2000;
/// The runner's output socket.
pub(super) const REPL_OUT: u16 = 2001;
/// The terminal's input and output, for images of the legacy `git` runtime.
pub(super) const TERMINAL: [u16; 2] = [2002, 2003];

/// What the image says of its kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelSpec {
    /// The user inside gets the uid of the agent's choice.
    pub uid_match: bool,
    /// Variables that are set to the number of cores.
    pub core_count_variables: Vec<String>,
    /// What the image is built on, as it says; empty when it does not.
    pub distro: String,
    /// Language of the runner.
    pub runtime_type: String,
    /// Interpreter or compiler.
    pub runtime_path: Option<String>,
    /// Service ports; host ports are still 0.
    pub services: Vec<ServicePort>,
    /// Whether it has the legacy terminal ports.
    pub terminal: bool,
}

impl KernelSpec {
    /// Reads an image's labels.
    ///
    /// # Errors
    /// [`AgentError::Value`] or [`AgentError::Assertion`] with 19.03's texts when a service port is wrong.
    pub fn parse(image: &str, labels: &LabelMap) -> Result<Self, AgentError> {
        let label = |name: &str| labels.get(name).map_or("", String::as_str).trim();
        let (_, name) = split_registry(image);
        let runtime_type = label("ai.backend.runtime-type");
        Ok(Self {
            uid_match: label("ai.backend.features")
                .split(' ')
                .any(|feature| feature == "uid-match"),
            core_count_variables: items(label("ai.backend.envs.corecount")),
            distro: label("ai.backend.base-distro").to_owned(),
            runtime_type: if runtime_type.is_empty() {
                "python"
            } else {
                runtime_type
            }
            .to_owned(),
            runtime_path: Some(label("ai.backend.runtime-path").to_owned())
                .filter(|path| !path.is_empty()),
            services: parse_services(label("ai.backend.service-ports"))?,
            terminal: name.contains("git"),
        })
    }

    /// The container's ports, in the order in which host ports are dealt.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        let services = self.services.iter().map(|service| service.container_port);
        let terminal = if self.terminal {
            TERMINAL.as_slice()
        } else {
            &[]
        };
        [REPL_IN, REPL_OUT]
            .into_iter()
            .chain(services)
            .chain(terminal.iter().copied())
            .collect()
    }
}

/// Registry and the rest of a canonical reference.
pub(super) fn split_registry(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("", image),
    }
}

fn items(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// 19.03's rules and texts (5.6).
fn parse_services(text: &str) -> Result<Vec<ServicePort>, AgentError> {
    items(text).iter().map(|item| parse_service(item)).collect()
}

fn parse_service(item: &str) -> Result<ServicePort, AgentError> {
    let value = |texts: &[&str]| AgentError::Value(texts.iter().map(ToString::to_string).collect());
    let parts: Vec<&str> = item.split(':').collect();
    let [name, protocol, port] = parts.as_slice() else {
        return Err(value(&["Invalid service port definition format", item]));
    };
    if !matches!(*protocol, "tcp" | "pty" | "http") {
        return Err(AgentError::Assertion(format!(
            "Unsupported service port protocol: {protocol}"
        )));
    }
    let number: i64 = port
        .parse()
        .map_err(|_| value(&["Invalid port number", port]))?;
    if number <= 1024 {
        return Err(value(&["Service port number must be larger than 1024."]));
    }
    if [i64::from(REPL_IN), i64::from(REPL_OUT)].contains(&number) {
        return Err(value(&[
            "Service port 2000 and 2001 is reserved for internal use.",
        ]));
    }
    let container_port =
        u16::try_from(number).map_err(|_| value(&["Invalid port number", port]))?;
    Ok(ServicePort {
        name: (*name).into(),
        protocol: (*protocol).into(),
        container_port,
        host_port: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_git_in_its_name_has_the_terminal_ports() {
        let git =
            KernelSpec::parse("reg.example:5000/x/digits:1", &LabelMap::new()).expect("no labels");
        assert_eq!(git.ports(), [2000, 2001, 2002, 2003]);
        let registry =
            KernelSpec::parse("git.example/x/python:1", &LabelMap::new()).expect("no labels");
        assert_eq!(registry.ports(), [2000, 2001]);
        assert_eq!(registry.runtime_type, "python");
    }

    #[test]
    fn wrong_service_ports_are_refused_with_the_originals_texts() {
        let refuse = |text: &str| parse_services(text).expect_err("wrong").to_string();
        assert_eq!(refuse("a:b"), "Invalid service port definition format: a:b");
        assert_eq!(
            refuse("a:udp:3000"),
            "Unsupported service port protocol: udp"
        );
        assert_eq!(refuse("a:tcp:x"), "Invalid port number: x");
        assert_eq!(
            refuse("a:tcp:80"),
            "Service port number must be larger than 1024."
        );
        assert_eq!(
            refuse("a:tcp:2001"),
            "Service port 2000 and 2001 is reserved for internal use."
        );
        assert!(refuse("a:tcp:70000").starts_with("Invalid port number"));
        assert_eq!(parse_services(" ,a:tcp:2002, ").expect("fine").len(), 1);
    }
}
