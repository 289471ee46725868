//! From request, image and allocation to the container: pure, the same for every engine, testable without one
//! (19.03 agent, `server.py`, `_create_kernel`).

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ports::KernelPorts;
use super::scratch::Scratch;
use super::spec::{KernelSpec, split_registry};
use crate::agent::AgentError;
use crate::agent::request::{KernelConfig, KernelId, VfolderMount};
use crate::krunner::{self, KrunnerEnv};
use crate::resource::device::DeviceEffects;
use crate::resource::spec::MountRecord;
use crate::runtime::{
    ContainerId, ContainerSpec, DEFAULT_CAPABILITIES, LABEL_AGENT_ID, LABEL_KERNEL_ID, LABEL_OWNER,
    LabelMap, Mount, MountKind, NetworkMode, OWNER, Seccomp,
};

/// Where the runner's layer is shown.
const KRUNNER: &str = krunner::MOUNT_POINT;
/// The user's home.
const WORK: &str = "/home/work";
/// Largest log kept for a kernel, bytes.
const LOG_LIMIT: u64 = 16 << 20;
/// Processes and threads of one kernel; 19.03 sets no limit, so a fork bomb takes the node with it.
const PIDS_LIMIT: i64 = 16_384;

/// What is the same for every kernel of this node.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// The agent's id.
    pub agent_id: String,
    /// `LOCAL_USER_ID` of uid-match images.
    pub kernel_uid: u32,
    /// User and group of every kernel's programs where the agent can give a work folder to nobody else: an ordinary user's
    /// agent on an engine of the machine's. `kernel_uid` is then the same user.
    pub own_user: Option<(u32, u32)>,
    /// What is shown at `/opt/backend.ai`, and whose runner it is.
    pub krunner: KrunnerEnv,
    /// The socket that programs inside ask, where there is one.
    pub agent_socket: Option<PathBuf>,
    /// Where the hosts of virtual folders are mounted.
    pub vfolder_base: PathBuf,
    /// Path inside a virtual folder host; no leading slash.
    pub vfolder_prefix: String,
    /// Command before the runner (`--sandbox-type jail`), empty for none; it brings its own system-call filter.
    pub jail: Vec<String>,
    /// Environment of the container that is not shown in `environ.txt`.
    pub runner_env: Vec<(String, String)>,
    /// Whose programs may not gain privileges by exec.
    pub no_new_privileges: NoNewPrivileges,
}

/// Whose programs may not gain privileges by exec (set-uid programs, such as `sudo`). 19.03 lets all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoNewPrivileges {
    /// Nobody's.
    #[default]
    Nobody,
    /// Those of images with the feature `uid-match`: their files belong to a user of the host.
    UidMatch,
    /// Everybody's.
    Everybody,
}

impl NoNewPrivileges {
    fn hold_for(self, spec: &KernelSpec) -> bool {
        match self {
            Self::Nobody => false,
            Self::UidMatch => spec.uid_match,
            Self::Everybody => true,
        }
    }
}

/// The virtual folders as they are recorded and mounted: `{base}/{host}/{prefix}/{id}` at `/home/work/{name}`.
///
/// # Errors
/// [`AgentError::Value`] when a name or part would lead out of its folder.
pub fn vfolders(
    settings: &PlanSettings,
    mounts: &[VfolderMount],
) -> Result<Vec<MountRecord>, AgentError> {
    mounts
        .iter()
        .map(|mount| {
            for part in [&mount.name, &mount.host, &mount.id] {
                check_relative(part)?;
            }
            let host = settings
                .vfolder_base
                .join(&mount.host)
                .join(settings.vfolder_prefix.trim_start_matches('/'))
                .join(&mount.id);
            Ok(MountRecord {
                host: host.to_string_lossy().into_owned(),
                container: format!("{WORK}/{}", mount.name),
                read_only: mount.read_only,
            })
        })
        .collect()
}

/// The session's environment in 19.03's order: the manager's, user and group, core counts, the hook library (which only
/// 19.03's runner has), accelerators.
#[must_use]
pub fn environ(
    settings: &PlanSettings,
    config: &KernelConfig,
    spec: &KernelSpec,
    effects: &DeviceEffects,
) -> Vec<(String, String)> {
    let mut all = config.environ.clone();
    match settings.own_user {
        Some((user, group)) => {
            set(&mut all, "LOCAL_USER_ID", user.to_string());
            set(&mut all, "LOCAL_GROUP_ID", group.to_string());
        }
        None if spec.uid_match => {
            set(&mut all, "LOCAL_USER_ID", settings.kernel_uid.to_string());
        }
        None => {}
    }
    let cores = effects.cores.unwrap_or_default().to_string();
    for name in &spec.core_count_variables {
        set(&mut all, name, cores.clone());
    }
    let package = settings.krunner.package.as_ref();
    if let Some(library) = package.and_then(|package| package.preload(&spec.distro)) {
        set(&mut all, "LD_PRELOAD", library);
    }
    for (name, value) in &effects.env {
        set(&mut all, name, value.clone());
    }
    all
}

/// Everything of a kernel that decides its container.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// The kernel.
    pub kernel: &'a KernelId,
    /// The request.
    pub config: &'a KernelConfig,
    /// What the image says.
    pub spec: &'a KernelSpec,
    /// What its allocation means.
    pub effects: &'a DeviceEffects,
    /// Its folders.
    pub scratch: &'a Scratch,
    /// Its virtual folders.
    pub vfolders: &'a [MountRecord],
    /// Its environment.
    pub environ: &'a [(String, String)],
    /// Its forwarded ports.
    pub ports: &'a KernelPorts,
}

/// The container of a kernel. `attempt` tells the containers of one kernel apart: a restart makes a new one.
#[must_use]
pub fn container(settings: &PlanSettings, input: &PlanInput<'_>, attempt: &str) -> ContainerSpec {
    let id = container_id(&settings.agent_id, input.kernel, attempt);
    let mut limits = input.effects.limits.clone();
    limits.pids = limits.pids.or(Some(PIDS_LIMIT));
    // As much swap as memory: what Docker gives where 19.03 asks for nothing.
    limits.swap_bytes = limits.swap_bytes.or(limits.memory_bytes);
    let mut env = input.environ.to_vec();
    env.extend(settings.runner_env.iter().cloned());
    ContainerSpec {
        name: container_name(&input.config.image, input.kernel),
        image: input.config.image.clone(),
        args: command(settings, input.spec),
        env,
        cwd: WORK.into(),
        hostname: None,
        mounts: mounts(settings, input),
        devices: input.effects.devices.clone(),
        limits,
        network: NetworkMode::Bridge,
        ports: input.ports.bindings.clone(),
        labels: labels(settings, input),
        seccomp: if settings.jail.is_empty() {
            Seccomp::Default
        } else {
            Seccomp::Unconfined
        },
        capabilities: DEFAULT_CAPABILITIES
            .iter()
            .map(ToString::to_string)
            .collect(),
        no_new_privileges: settings.no_new_privileges.hold_for(input.spec),
        log_limit: LOG_LIMIT,
        id,
    }
}

/// The container's name, as the Python agent gives it.
fn container_name(image: &str, kernel: &KernelId) -> String {
    let (_, name) = split_registry(image);
    let last = name.rsplit('/').next().unwrap_or(name);
    format!(
        "kernel.{}.{kernel}",
        last.split([':', '@']).next().unwrap_or(last)
    )
}

fn container_id(agent: &str, kernel: &KernelId, attempt: &str) -> ContainerId {
    let digest = Sha256::digest(format!("{agent}\n{kernel}\n{attempt}"));
    ContainerId(hex::encode(digest))
}

fn command(settings: &PlanSettings, spec: &KernelSpec) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (first, runner) = match &settings.krunner.package {
        None => (Vec::new(), words(&[krunner::KRUNNER, "init", "--"])),
        Some(_) => (
            vec![format!("{KRUNNER}/bin/entrypoint.sh")],
            words(&[&format!("{KRUNNER}/bin/python"), "-m", "ai.backend.kernel"]),
        ),
    };
    first
        .into_iter()
        .chain(settings.jail.iter().cloned())
        .chain(runner)
        .chain([spec.runtime_type.clone()])
        .chain(spec.runtime_path.clone())
        .collect()
}

/// 19.03's mounts (5.4), with the krunner environment in place of the helper container's volume; the many small binds
/// are those of 19.03's runner alone.
fn mounts(settings: &PlanSettings, input: &PlanInput<'_>) -> Vec<Mount> {
    let bind = |source: &Path, target: &str, read_only| Mount {
        kind: MountKind::Bind(source.to_owned()),
        target: target.into(),
        read_only,
    };
    let mut all = vec![
        bind(&input.scratch.config(), "/home/config", true),
        bind(&input.scratch.work(), WORK, false),
    ];
    all.extend(input.scratch.tmp().map(|tmp| bind(tmp, "/tmp", false)));
    all.extend(
        input
            .vfolders
            .iter()
            .map(|v| bind(Path::new(&v.host), &v.container, v.read_only)),
    );
    all.push(bind(&settings.krunner.root, KRUNNER, true));
    let package = settings.krunner.package.as_ref();
    let files = package.map(|package| package.binds(&input.spec.distro));
    all.extend(
        files
            .into_iter()
            .flatten()
            .map(|(from, to)| bind(&from, &to, true)),
    );
    all.extend(
        settings
            .agent_socket
            .as_deref()
            .map(|socket| bind(socket, &format!("{KRUNNER}/agent.sock"), false)),
    );
    all.extend(input.effects.mounts.iter().cloned());
    all
}

/// Our own labels and those of the image that a restarted agent needs.
fn labels(settings: &PlanSettings, input: &PlanInput<'_>) -> LabelMap {
    let image = input
        .config
        .labels
        .iter()
        .filter(|(name, _)| name.starts_with("ai.backend."));
    let mut all: LabelMap = image
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.insert(LABEL_KERNEL_ID.into(), input.kernel.to_string());
    all.insert(LABEL_AGENT_ID.into(), settings.agent_id.clone());
    all.insert(LABEL_OWNER.into(), OWNER.into());
    all
}

fn set(environ: &mut Vec<(String, String)>, name: &str, value: String) {
    match environ.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value,
        None => environ.push((name.to_owned(), value)),
    }
}

fn check_relative(part: &str) -> Result<(), AgentError> {
    let plain = !part.is_empty()
        && Path::new(part)
            .components()
            .all(|component| matches!(component, std::path::Component::Normal(_)));
    if plain {
        Ok(())
    } else {
        Err(AgentError::Value(vec![
            "Invalid virtual folder mount".into(),
            part.into(),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::scratch::ScratchRoot;
    use crate::runtime::Limits;

    fn settings() -> PlanSettings {
        PlanSettings {
            agent_id: "i-node".into(),
            kernel_uid: 1000,
            own_user: None,
            krunner: PathBuf::from("/state/krunner/opt/backend.ai").into(),
            agent_socket: Some("/run/agent.sock".into()),
            vfolder_base: "/mnt".into(),
            vfolder_prefix: "pfx".into(),
            jail: Vec::new(),
            runner_env: vec![("PROFILE".into(), "19.03".into())],
            no_new_privileges: NoNewPrivileges::UidMatch,
        }
    }

    fn labels_of(items: &[(&str, &str)]) -> LabelMap {
        items
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn config() -> KernelConfig {
        KernelConfig {
            image: "index.docker.io/lablup/python:3.6-debian".into(),
            labels: labels_of(&[
                ("ai.backend.features", "batch query uid-match"),
                ("ai.backend.envs.corecount", "NPROC,OMP_NUM_THREADS"),
                ("ai.backend.service-ports", "jupyter:http:8080,sh:pty:3000"),
                ("ai.backend.runtime-path", "/usr/bin/python3"),
                ("maintainer", "someone"),
            ]),
            environ: vec![
                ("A".into(), "1".into()),
                ("LOCAL_USER_ID".into(), "0".into()),
            ],
            mounts: vec![VfolderMount {
                name: "data".into(),
                host: "local".into(),
                id: "0123456789abcdef0123456789abcdef".into(),
                read_only: true,
            }],
            ..KernelConfig::default()
        }
    }

    fn planned() -> ContainerSpec {
        planned_with(&settings())
    }

    fn planned_with(settings: &PlanSettings) -> ContainerSpec {
        let config = config();
        let spec = KernelSpec::parse(&config.image, &config.labels).expect("good labels");
        let effects = DeviceEffects {
            limits: Limits {
                memory_bytes: Some(1 << 30),
                ..Limits::default()
            },
            cores: Some(2),
            ..DeviceEffects::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("k1/config")).expect("made");
        let kernel = KernelId::parse("k1").expect("a valid id");
        let scratch = ScratchRoot::new(folder.path().into(), false)
            .open(&kernel)
            .expect("there");
        let input = PlanInput {
            kernel: &kernel,
            config: &config,
            spec: &spec,
            effects: &effects,
            scratch: &scratch,
            vfolders: &vfolders(settings, &config.mounts).expect("good mounts"),
            environ: &environ(settings, &config, &spec, &effects),
            ports: &KernelPorts::deal(&spec, &[30000, 30001, 30002, 30003]),
        };
        container(settings, &input, "1")
    }

    #[test]
    fn the_environment_is_in_the_originals_order_and_overrides_in_place() {
        let names: Vec<_> = planned()
            .env
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            names,
            [
                "A=1",
                "LOCAL_USER_ID=1000",
                "NPROC=2",
                "OMP_NUM_THREADS=2",
                "PROFILE=19.03"
            ]
        );
    }

    #[test]
    fn an_ordinary_users_kernels_are_the_users() {
        let settings = PlanSettings {
            kernel_uid: 1000,
            own_user: Some((1000, 100)),
            ..settings()
        };
        let ids = |features: &str, settings: &PlanSettings| {
            let labels = labels_of(&[("ai.backend.features", features)]);
            let spec = KernelSpec::parse("lablup/python", &labels).expect("good labels");
            let config = KernelConfig::default();
            let all = environ(settings, &config, &spec, &DeviceEffects::default());
            let all: Vec<_> = all.iter().map(|(k, v)| format!("{k}={v}")).collect();
            all.join(" ")
        };
        let own = "LOCAL_USER_ID=1000 LOCAL_GROUP_ID=100";
        assert_eq!(ids("batch", &settings), own);
        assert_eq!(ids("uid-match", &settings), own);
    }

    #[test]
    fn mounts_come_with_parents_before_children() {
        let plan = planned();
        let targets: Vec<_> = plan
            .mounts
            .iter()
            .map(|m| (m.target.to_str().expect("text"), m.read_only))
            .collect();
        assert_eq!(
            targets,
            [
                ("/home/config", true),
                ("/home/work", false),
                ("/home/work/data", true),
                ("/opt/backend.ai", true),
                ("/opt/backend.ai/agent.sock", false),
            ]
        );
        let expected = MountKind::Bind("/mnt/local/pfx/0123456789abcdef0123456789abcdef".into());
        assert_eq!(plan.mounts[2].kind, expected);
    }

    #[test]
    fn the_runner_of_2019_comes_with_its_files_its_entry_point_and_its_hook() {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = std::env::consts::ARCH;
        for name in [
            "runner/entrypoint.sh",
            "runner/su-exec.ubuntu16.04.bin",
            &format!("runner/libbaihook.ubuntu16.04.{machine}.so"),
            "kernel/__main__.py",
            "helpers/__init__.py",
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below it")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        let package = krunner::Package::open(folder.path()).expect("whole");
        let plan = planned_with(&PlanSettings {
            krunner: KrunnerEnv {
                root: "/env".into(),
                package: Some(package.clone()),
            },
            jail: vec!["jail".into()],
            ..settings()
        });
        assert_eq!(
            plan.args,
            [
                "/opt/backend.ai/bin/entrypoint.sh",
                "jail",
                "/opt/backend.ai/bin/python",
                "-m",
                "ai.backend.kernel",
                "python",
                "/usr/bin/python3"
            ]
        );
        let hook = "/opt/backend.ai/hook/libbaihook.so".to_owned();
        assert!(plan.env.contains(&("LD_PRELOAD".to_owned(), hook)));
        let env = plan
            .mounts
            .iter()
            .position(|mount| mount.kind == MountKind::Bind("/env".into()));
        let env = env.expect("shown");
        for (from, to) in package.binds("") {
            let at = plan
                .mounts
                .iter()
                .position(|mount| mount.target == Path::new(&to));
            let at = at.expect("shown");
            assert!(at > env, "{to}");
            assert_eq!(plan.mounts[at].kind, MountKind::Bind(from));
            assert!(plan.mounts[at].read_only);
        }
    }

    #[test]
    fn names_labels_and_ports_are_what_a_restarted_agent_needs() {
        let plan = planned();
        assert_eq!(plan.name, "kernel.python.k1");
        assert_eq!(plan.id.0.len(), 64);
        assert_eq!(plan.labels[LABEL_KERNEL_ID], "k1");
        assert!(plan.labels.contains_key("ai.backend.service-ports"));
        assert!(!plan.labels.contains_key("maintainer"));
        let ports: Vec<_> = plan.ports.iter().map(|p| (p.host, p.container)).collect();
        assert_eq!(
            ports,
            [(30000, 2000), (30001, 2001), (30002, 8080), (30003, 3000)]
        );
        assert_eq!(plan.args[3..], ["python", "/usr/bin/python3"]);
    }

    #[test]
    fn who_may_not_gain_privileges_is_chosen_by_image() {
        assert!(planned().no_new_privileges, "a uid-match image");
        let plain = KernelSpec::default();
        let held = [
            NoNewPrivileges::Nobody,
            NoNewPrivileges::UidMatch,
            NoNewPrivileges::Everybody,
        ]
        .map(|choice| choice.hold_for(&plain));
        assert_eq!(held, [false, false, true]);
    }

    #[test]
    fn a_virtual_folder_cannot_lead_out_of_its_place() {
        for bad in ["../x", "/etc", "a/../../b", ""] {
            let mount = VfolderMount {
                name: bad.into(),
                host: "h".into(),
                id: "i".into(),
                read_only: false,
            };
            assert!(vfolders(&settings(), &[mount]).is_err(), "{bad}");
        }
    }
}
