//! What was given by option, environment or file, by name, before anybody knows what it means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Complaints;
use crate::cli::CommonOptions;

/// Where the configuration file is looked for when none is named.
const FILE: &str = "/etc/backendai-agent/agent.toml";

/// Names that the file may use, which are those of the options, and how many values they take.
const NAMES: &[&str] = &[
    "runtime",
    "runtime-endpoint",
    "runtime-handler",
    "snapshotter",
    "state-dir",
    "run-dir",
    "namespace",
    "agent-host-override",
    "kernel-host-override",
    "agent-port",
    "container-port-range",
    "etcd-addr",
    "etcd-user",
    "etcd-password",
    "idle-timeout",
    "sandbox-type",
    "kernel-uid",
    "scratch-in-memory",
    "debug-kernel",
    "debug-jail",
    "debug-hook",
    "debug-skip-container-deletion",
    "kernel-aliases",
    "limit-cpus",
    "limit-gpus",
    "pid-file",
    "scratch-root",
    "debug",
    "verbose",
    "log-file",
    "log-file-count",
    "log-file-size",
    "on-sigterm",
    "no-new-privileges",
    "krunner-env",
    "krunner-package",
    "metrics-addr",
];
/// The one name that takes a list.
const JAIL_ARG: &str = "jail-arg";

/// What was given, by name, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
    pub(super) jail_args: Vec<String>,
    complaints: Vec<String>,
}

impl Settings {
    /// Reads the file and lays the common options over it.
    ///
    /// # Errors
    /// When the file cannot be read or is no TOML; what is in it is judged later.
    pub fn load(options: &CommonOptions) -> Result<Self, Complaints> {
        let text = match &options.config {
            Some(path) => Some(read(path)?),
            None => std::fs::read_to_string(FILE).ok(),
        };
        let path = options.config.as_deref().unwrap_or(Path::new(FILE));
        let mut settings = Self::default();
        if let Some(text) = text {
            settings.take_file(path, &text)?;
        }
        settings.give("runtime", options.runtime.clone());
        settings.give("runtime-endpoint", options.runtime_endpoint.clone());
        settings.give("runtime-handler", options.runtime_handler.clone());
        settings.give("snapshotter", options.snapshotter.clone());
        settings.give("state-dir", options.state_dir.clone());
        settings.give("run-dir", options.run_dir.clone());
        Ok(settings)
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), Complaints> {
        let path = path.display();
        let table: toml::Table = text
            .parse()
            .map_err(|error| Complaints(vec![format!("{path}: {error}")]))?;
        for (name, value) in table {
            let plain = match &value {
                toml::Value::String(text) => Some(text.clone()),
                toml::Value::Integer(number) => Some(number.to_string()),
                toml::Value::Float(number) => Some(number.to_string()),
                toml::Value::Boolean(value) => Some(value.to_string()),
                _ => None,
            };
            let list: Option<Vec<String>> = value.as_array().and_then(|items| {
                let text = |item: &toml::Value| item.as_str().map(str::to_owned);
                items.iter().map(text).collect()
            });
            if NAMES.contains(&name.as_str()) {
                match plain {
                    Some(plain) => self.give(&name, Some(plain)),
                    None => self.complain(format!("{path}: {name} takes one plain value")),
                }
            } else if name == JAIL_ARG {
                match list {
                    Some(list) => self.jail_args = list,
                    None => self.complain(format!("{path}: {name} takes a list of texts")),
                }
            } else {
                self.complain(format!(
                    "{path}: unknown key {name}; keys are named as options"
                ));
            }
        }
        Ok(())
    }

    /// Lays a given value over what is there.
    pub fn give(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.values.insert(name.to_owned(), value);
        }
    }

    pub(super) fn complain(&mut self, text: String) {
        self.complaints.push(text);
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// The value in its own type; a wrong one is complained about with what is `wanted`, and the default taken.
    pub(super) fn parse<T>(
        &mut self,
        name: &str,
        default: T,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        parse(&text).unwrap_or_else(|| {
            self.complain(format!("--{name}: {text:?} will not do; give {wanted}"));
            default
        })
    }

    /// `true`, `yes`, `false`, `no` in any case.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.parse(name, false, "true, yes, false or no", |text| {
            match text.to_lowercase().as_str() {
                "true" | "yes" => Some(true),
                "false" | "no" => Some(false),
                _ => None,
            }
        })
    }

    /// The value, unless there are complaints.
    ///
    /// # Errors
    /// All complaints.
    pub fn finish<T>(self, value: T) -> Result<T, Complaints> {
        if self.complaints.is_empty() {
            Ok(value)
        } else {
            Err(Complaints(self.complaints))
        }
    }
}

fn read(path: &Path) -> Result<String, Complaints> {
    std::fs::read_to_string(path)
        .map_err(|error| Complaints(vec![format!("--config {}: {error}", path.display())]))
}
