//! Options, environment and file become one frozen [`Config`], a struct of the components' own configs. Everything
//! that is wrong is complained about at once. Precedence: option, environment, file, default.

mod engine;
mod kernel;
mod settings;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use self::kernel::{KernelOptions, KrunnerSource, Sandbox};
pub use self::settings::Settings;
use crate::cli::serve::ServeArgs;
use crate::cli::{CommonArgs, CommonOptions};
use crate::etcd::{EtcdConfig, join_host_port, split_host_port};

/// The daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Engine and folders.
    pub common: CommonArgs,
    /// How the manager is reached and how it reaches us.
    pub front: FrontConfig,
    /// What kernels are made with.
    pub kernel: KernelOptions,
    /// User whose id `kernel.uid` becomes; `None` is the agent's own.
    pub kernel_user: Option<String>,
    /// Where the log goes.
    pub log: LogConfig,
    /// File for our process id.
    pub pid_file: Option<PathBuf>,
    /// What SIGTERM does with kernels.
    pub on_sigterm: OnSigterm,
    /// Address of the HTTP server for metrics and health; `None` is off.
    pub metrics: Option<SocketAddr>,
}

/// How the manager is reached and how it reaches us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// Where etcd is.
    pub etcd: EtcdConfig,
    /// Address reported to the manager; `None` is to be found out.
    pub agent_host: Option<String>,
    /// TCP port of the RPC server.
    pub agent_port: u16,
    /// Region reported to the manager; `None` is the cloud's or `local`.
    pub region: Option<String>,
    /// Socket that programs inside kernels ask.
    pub helper_socket: PathBuf,
}

/// What SIGTERM does with kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSigterm {
    /// They are destroyed (19.03).
    Destroy,
    /// They run on.
    Keep,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Debug messages too.
    pub debug: bool,
    /// A file of JSON lines, beside stderr.
    pub file: Option<PathBuf>,
    /// Rotated files to keep.
    pub file_count: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
}

/// Everything that is wrong with the options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Complaints(pub Vec<String>);

/// Why a well-formed configuration cannot be used on this host; exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum HostProblem {
    /// The scratch root is not there.
    #[error("--scratch-root {0}: no such folder; make it, or name another")]
    NoScratchRoot(PathBuf),
    /// The user of `--kernel-uid` is not there.
    #[error("--kernel-uid {0}: no such user; give a number or a user of this host")]
    NoUser(String),
}

impl Settings {
    fn front(&mut self, run_dir: &Path) -> FrontConfig {
        let host_port = |text: &str| {
            let (host, port) = split_host_port(text)?;
            Some(join_host_port(&host, port))
        };
        FrontConfig {
            etcd: EtcdConfig {
                address: self.parse(
                    "etcd-addr",
                    "127.0.0.1:2379".to_owned(),
                    "host:port",
                    host_port,
                ),
                namespace: self.text("namespace").unwrap_or_else(|| "local".to_owned()),
                user: self.text("etcd-user"),
                password: self.text("etcd-password"),
            },
            agent_host: self.text("agent-host-override"),
            agent_port: self.parse("agent-port", 6001, "a port from 1 to 65535", |text| {
                text.parse().ok().filter(|port| *port > 0)
            }),
            region: self.text("region"),
            helper_socket: run_dir.join("agent.sock"),
        }
    }

    fn log(&mut self) -> LogConfig {
        LogConfig {
            debug: self.flag("debug"),
            file: self.path("log-file"),
            file_count: self.parse("log-file-count", 10, "a number of files", |text| {
                text.parse().ok()
            }),
            file_bytes: self.parse("log-file-size", 10 << 20, "a number of MiB", mebibytes),
        }
    }

    /// Options without effect are still checked as 19.03 does.
    fn deprecated(&mut self) {
        for name in ["limit-cpus", "limit-gpus"] {
            self.parse(name, (), "a bit mask in hexadecimal digits", |text| {
                let digits = text.trim();
                let digits = digits.strip_prefix("0x").unwrap_or(digits);
                let hex = digits.chars().all(|c| c.is_ascii_hexdigit());
                (hex && !digits.is_empty()).then_some(())
            });
        }
        self.parse("idle-timeout", (), "a number of seconds", |text| {
            text.parse::<u64>().ok().map(|_| ())
        });
        let wanted = "a path that ends in ai/backend";
        self.parse("debug-kernel", (), wanted, |text| {
            Path::new(text).ends_with("ai/backend").then_some(())
        });
        self.flag("verbose");
    }
}

impl Config {
    /// The configuration of `serve`, from its options, the common ones, their environment, and the file.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(args: &ServeArgs, common: &CommonOptions) -> Result<Self, Complaints> {
        let mut settings = Settings::load(common)?;
        for (name, value) in args.given() {
            settings.give(name, value);
        }
        if !args.jail_arg.is_empty() {
            settings.jail_args.clone_from(&args.jail_arg);
        }
        settings.give("region", environment("BACKEND_REGION"));
        settings.deprecated();
        let common = settings.common();
        let config = Self {
            front: settings.front(&common.run_dir),
            kernel: settings.kernel(&common.state_dir),
            common,
            kernel_user: settings.text("kernel-uid"),
            log: settings.log(),
            pid_file: settings.path("pid-file"),
            on_sigterm: settings.parse(
                "on-sigterm",
                OnSigterm::Destroy,
                "destroy or keep",
                |text| match text {
                    "destroy" => Some(OnSigterm::Destroy),
                    "keep" => Some(OnSigterm::Keep),
                    _ => None,
                },
            ),
            metrics: settings.parse(
                "metrics-addr",
                None,
                "an address and a port, as in 127.0.0.1:9100",
                |text| text.parse().ok().map(Some),
            ),
        };
        settings.finish(config)
    }

    /// Looks at the host: the scratch root must be there, unless it is in the state folder, which is ours, and the
    /// kernels' user.
    ///
    /// # Errors
    /// [`HostProblem`].
    pub fn check_host(mut self) -> Result<Self, HostProblem> {
        if self.kernel.scratch_root.starts_with(&self.common.state_dir) {
            // What is wrong with it shows below.
            let _ = std::fs::create_dir_all(&self.kernel.scratch_root);
        }
        if !self.kernel.scratch_root.is_dir() {
            return Err(HostProblem::NoScratchRoot(self.kernel.scratch_root));
        }
        if let Some(user) = &self.kernel_user {
            let uid = user.parse().ok().or_else(|| kernel::user_id(user));
            self.kernel.uid = uid.ok_or_else(|| HostProblem::NoUser(user.clone()))?;
        }
        Ok(self)
    }
}

fn mebibytes(text: &str) -> Option<u64> {
    let size: f64 = text.parse().ok()?;
    if !(size > 0.0 && size < 1e9) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a small positive number"
    )]
    Some((size * f64::from(1 << 20)) as u64)
}

/// A variable of the environment that no option shows.
#[expect(
    clippy::disallowed_methods,
    reason = "this is where the configuration is read"
)]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Containers and monitors work in folders of their own, where a relative path would mean another place.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Whether this is the machine's agent, not one of an ordinary user (who may be root in namespaces).
fn is_system() -> bool {
    rustix::process::geteuid().is_root() && crate::rootless::current().is_none()
}

#[cfg(test)]
mod tests {
    use super::kernel::standard_scratch_root;
    use super::*;
    use crate::cli::RuntimeKind;
    use crate::kernel::plan::NoNewPrivileges;

    fn config(args: &ServeArgs, file: &str) -> Result<Config, Complaints> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, file).expect("a file");
        let common = CommonOptions {
            config: Some(path),
            ..CommonOptions::default()
        };
        Config::load(args, &common)
    }

    #[test]
    fn without_options_the_defaults_are_the_originals() {
        let config = config(&ServeArgs::default(), "").expect("a configuration");
        assert_eq!(config.front.etcd.address, "127.0.0.1:2379");
        assert_eq!(config.front.etcd.namespace, "local");
        assert_eq!(config.front.agent_port, 6001);
        assert_eq!(config.kernel.ports, 30000..=31000);
        assert_eq!(
            config.kernel.scratch_root,
            Path::new("/var/cache/scratches")
        );
        assert_eq!(config.kernel.sandbox, Sandbox::Docker);
        assert_eq!(
            (config.log.file_count, config.log.file_bytes),
            (10, 10 << 20)
        );
        assert_eq!(config.on_sigterm, OnSigterm::Destroy);
        assert!(!config.log.debug && !config.kernel.keep_dead && !config.kernel.scratch_in_memory);
    }

    #[test]
    fn an_ordinary_users_scratch_root_is_in_the_state_folder_and_made_when_missing() {
        let state = tempfile::tempdir().expect("a folder");
        let root = standard_scratch_root(false, state.path());
        let mut config = config(&ServeArgs::default(), "").expect("a configuration");
        config.common.state_dir = state.path().to_owned();
        config.kernel.scratch_root = root.clone();
        let mut elsewhere = config.clone();
        config.check_host().expect("it is made");
        assert!(root.starts_with(state.path()) && root.is_dir());
        elsewhere.kernel.scratch_root = state.path().with_extension("missing");
        elsewhere
            .check_host()
            .expect_err("that is no folder of ours");
        assert_eq!(
            standard_scratch_root(true, state.path()),
            Path::new("/var/cache/scratches")
        );
    }

    #[test]
    fn the_file_speaks_in_the_options_names() {
        let file = r#"
            namespace = "prod"
            agent-port = 7001
            runtime = "containerd"
            runtime-endpoint = "/run/c.sock"
            runtime-handler = "crun"
            snapshotter = "native"
            debug = true
            log-file-size = 0.5
            jail-arg = [" -x", "y "]
            on-sigterm = "keep"
            no-new-privileges = "uid-match"
            krunner-env = "r.io/krunner:1"
            krunner-package = "/opt/agent"
            metrics-addr = "127.0.0.1:9100"
        "#;
        let config = config(&ServeArgs::default(), file).expect("a configuration");
        assert_eq!(config.front.etcd.namespace, "prod");
        assert_eq!(config.front.agent_port, 7001);
        assert_eq!(config.common.runtime, RuntimeKind::Containerd);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(config.common.runtime_endpoint, text("/run/c.sock"));
        assert_eq!(config.common.runtime_handler, text("crun"));
        assert_eq!(config.common.snapshotter, text("native"));
        assert!(config.log.debug);
        assert_eq!(config.log.file_bytes, 512 << 10);
        assert_eq!(config.kernel.jail_args, ["-x", "y"]);
        assert_eq!(config.on_sigterm, OnSigterm::Keep);
        assert_eq!(config.kernel.no_new_privileges, NoNewPrivileges::UidMatch);
        assert_eq!(config.kernel.krunner.env.as_deref(), Some("r.io/krunner:1"));
        assert_eq!(
            config.kernel.krunner.package.as_deref(),
            Some(Path::new("/opt/agent"))
        );
        assert_eq!(config.metrics, "127.0.0.1:9100".parse().ok());
    }

    #[test]
    fn options_win_over_the_file() {
        let args = ServeArgs {
            agent_port: Some("8001".to_owned()),
            debug: Some("no".to_owned()),
            jail_arg: vec!["z".to_owned()],
            ..ServeArgs::default()
        };
        let file = "agent-port = 7001\ndebug = true\njail-arg = [\"y\"]\n";
        let config = config(&args, file).expect("a configuration");
        assert_eq!(config.front.agent_port, 8001);
        assert!(!config.log.debug);
        assert_eq!(config.kernel.jail_args, ["z"]);
    }

    #[test]
    fn the_password_of_etcd_is_not_in_the_logs() {
        let args = ServeArgs {
            etcd_password: Some("hush-hush".to_owned()),
            ..ServeArgs::default()
        };
        let config = config(&args, "").expect("a configuration");
        assert!(!format!("{config:?}").contains("hush-hush"));
    }
}
