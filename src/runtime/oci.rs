//! A container spec and its image become an OCI runtime spec: a pure function, for engines that read `config.json`.
//!
//! Written as the JSON of the [runtime specification](https://github.com/opencontainers/runtime-spec) so that it can
//! be compared with it line by line, and read back through `oci_spec`, which checks every name and type.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{
    ContainerSpec, DeviceNode, ExecSpec, Limits, Mount, MountKind, NetworkMode, Seccomp, seccomp,
};

/// Search path of a program when neither the image nor the request has one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of /dev/shm when the limits do not say.
const DEFAULT_SHM: u64 = 64 << 20;

/// Parts of /proc and /sys that tell of the host or change it.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// Parts of /proc that may be read only.
/// libcontainer mounts the hierarchies of cgroup v1 writable whatever is asked, and root inside could raise its own
/// limits; this says it once more, for each by its name. Names that are not there are passed over.
const READ_ONLY: [&str; 24] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/blkio",
    "/sys/fs/cgroup/cpu",
    "/sys/fs/cgroup/cpu,cpuacct",
    "/sys/fs/cgroup/cpuacct",
    "/sys/fs/cgroup/cpuacct,cpu",
    "/sys/fs/cgroup/cpuset",
    "/sys/fs/cgroup/devices",
    "/sys/fs/cgroup/freezer",
    "/sys/fs/cgroup/hugetlb",
    "/sys/fs/cgroup/memory",
    "/sys/fs/cgroup/misc",
    "/sys/fs/cgroup/net_cls",
    "/sys/fs/cgroup/net_cls,net_prio",
    "/sys/fs/cgroup/net_prio",
    "/sys/fs/cgroup/perf_event",
    "/sys/fs/cgroup/pids",
    "/sys/fs/cgroup/rdma",
    "/sys/fs/cgroup/systemd",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the engine decides about a container, beside what was asked.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Root file system on the host, or relative to the bundle.
    pub rootfs: PathBuf,
    /// Network namespace to join; a new one when absent and the mode is not `Host`.
    pub netns: Option<PathBuf>,
    /// Cgroup below the root of every hierarchy.
    pub cgroup: PathBuf,
    /// Whether the limits go into the spec; on cgroup v2 the agent applies them itself, one level higher.
    pub limits: bool,
    /// Environment of the image, `K=V`.
    pub image_env: Vec<String>,
    /// Hard limit of open files that may be set: the agent's own, as raising it is a privilege.
    pub open_files: u64,
    /// Whether cgroups are told which devices may be used: root of a user namespace may not, and can make no devices
    /// either, only show those of the host.
    pub device_rules: bool,
}

/// Why a container spec cannot be said in OCI's words.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A path is not UTF-8, which OCI's JSON asks for.
    #[error("path {0:?} is not valid UTF-8; rename it")]
    Path(PathBuf),
    /// `oci_spec` does not take a value.
    #[error("the request does not make a valid OCI spec: {0}")]
    Spec(#[from] serde_json::Error),
}

/// Makes the OCI runtime spec of a container.
///
/// # Errors
/// When a part of the request has no form in OCI's JSON; the text names the part.
pub fn spec(container: &ContainerSpec, place: &Placement) -> Result<Spec, OciError> {
    let spec = json!({
        "ociVersion": "1.0.2",
        "hostname": container.hostname(),
        "root": {"path": text(&place.rootfs)?, "readonly": false},
        "process": process(container, place)?,
        "mounts": mounts(container)?,
        "linux": linux(container, place)?,
    });
    Ok(serde_json::from_value(without_null(spec))?)
}

/// The image's environment, overridden and followed by the request's; a search path in any case.
#[must_use]
pub fn environment(image: &[String], own: &[(String, String)]) -> Vec<String> {
    let mut all: Vec<(&str, String)> = Vec::new();
    let image = image
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let own = own
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in image.chain(own) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value.to_owned(),
            None => all.push((name, value.to_owned())),
        }
    }
    if !all.iter().any(|(name, _)| *name == "PATH") {
        all.push(("PATH", DEFAULT_PATH.to_owned()));
    }
    all.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// The OCI process of a program that joins the container with this spec: with the rights of the first one, and none of
/// its capabilities for another user than root.
///
/// # Errors
/// When the spec is no JSON.
pub fn joining(container: &[u8], exec: &ExecSpec) -> serde_json::Result<Value> {
    let spec: Value = serde_json::from_slice(container)?;
    let mut process = spec["process"].clone();
    let base: Vec<String> = serde_json::from_value(process["env"].clone()).unwrap_or_default();
    let (uid, gid) = exec.user;
    process["args"] = json!(exec.args);
    process["env"] = json!(environment(&base, &exec.env));
    process["cwd"] = json!(exec.cwd);
    process["user"] = json!({"uid": uid, "gid": gid});
    if uid != 0 {
        for set in ["effective", "permitted"] {
            process["capabilities"][set] = json!([]);
        }
    }
    Ok(process)
}

fn process(container: &ContainerSpec, place: &Placement) -> Result<Value, OciError> {
    let caps = &container.capabilities;
    Ok(json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": container.args,
        "env": environment(&place.image_env, &container.env),
        "cwd": text(&container.cwd)?,
        // Ambient and inheritable stay empty: a program that drops to a user must not keep any.
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": place.open_files, "soft": place.open_files}],
        // libcontainer loads the filter after the privileges are dropped when this is present in either value.
        "noNewPrivileges": container.no_new_privileges.then_some(true),
    }))
}

fn mounts(container: &ContainerSpec) -> Result<Vec<Value>, OciError> {
    let shm = container.limits.shm_bytes.unwrap_or(DEFAULT_SHM);
    let mount = |target: &str, kind: &str, options: &str| {
        let options: Vec<_> = options.split(',').collect();
        json!({"destination": target, "type": kind, "source": kind, "options": options})
    };
    let mut mounts = vec![
        mount("/proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount(
            "/dev/shm",
            "tmpfs",
            &format!("nosuid,noexec,nodev,mode=1777,size={shm}"),
        ),
        mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "nosuid,noexec,nodev,relatime,ro",
        ),
    ];
    if container.network == NetworkMode::Host {
        // A sysfs shows the network of whoever mounts it, which must own that network.
        mounts.retain(|mount| mount["destination"] != "/sys");
        mounts.insert(
            5,
            json!({"destination": "/sys", "type": "none", "source": "/sys",
                   "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}),
        );
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    for mount in &container.mounts {
        mounts.push(extra_mount(mount)?);
    }
    Ok(mounts)
}

fn extra_mount(mount: &Mount) -> Result<Value, OciError> {
    let access = if mount.read_only { "ro" } else { "rw" };
    let target = text(&mount.target)?;
    Ok(match &mount.kind {
        MountKind::Bind(source) => json!({
            "destination": target, "type": "none", "source": text(source)?,
            "options": ["rbind", "rprivate", if mount.read_only { "rro" } else { "rw" }, access],
        }),
        MountKind::Tmpfs(size) => json!({
            "destination": target, "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", format!("size={size}"), access],
        }),
    })
}

fn linux(container: &ContainerSpec, place: &Placement) -> Result<Value, OciError> {
    let devices = container
        .devices
        .iter()
        .map(device)
        .collect::<Result<Vec<_>, _>>()?;
    let filter = match container.seccomp {
        Seccomp::Default => {
            serde_json::to_value(seccomp::default_profile(&container.capabilities))?
        }
        Seccomp::Unconfined => Value::Null,
    };
    Ok(json!({
        "cgroupsPath": text(&place.cgroup)?,
        "namespaces": namespaces(container.network, place)?,
        "devices": devices,
        "resources": resources(container, place),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        "seccomp": filter,
    }))
}

fn namespaces(network: NetworkMode, place: &Placement) -> Result<Vec<Value>, OciError> {
    let mut all: Vec<_> = ["pid", "mount", "ipc", "uts", "cgroup"]
        .map(|kind| json!({"type": kind}))
        .into();
    match (&place.netns, network) {
        (_, NetworkMode::Host) => {}
        (Some(path), _) => all.push(json!({"type": "network", "path": text(path)?})),
        (None, _) => all.push(json!({"type": "network"})),
    }
    Ok(all)
}

fn device(node: &DeviceNode) -> Result<Value, OciError> {
    Ok(json!({
        "path": text(&node.path)?, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": 0, "gid": 0,
    }))
}

fn resources(container: &ContainerSpec, place: &Placement) -> Value {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(container.devices.iter().map(|node| {
        json!({"allow": true, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
               "access": node.access})
    }));
    if !place.device_rules {
        // Nor could limits be told without rules: where there are some the agent has set them.
        return Value::Null;
    }
    if !place.limits {
        return json!({"devices": rules});
    }
    let Limits {
        cpu_quota_us,
        cpu_period_us,
        cpuset,
        memory_bytes,
        swap_bytes,
        pids,
        ..
    } = &container.limits;
    // OCI counts memory and swap together, as cgroup v1 does.
    let swap = memory_bytes
        .zip(*swap_bytes)
        .map(|(memory, swap)| memory.saturating_add(swap));
    let period = cpu_quota_us
        .map(|_| cpu_period_us.unwrap_or(100_000))
        .or(*cpu_period_us);
    let cpu = (cpu_quota_us.is_some() || period.is_some() || cpuset.is_some())
        .then(|| json!({"quota": cpu_quota_us, "period": period, "cpus": cpuset}));
    let memory = memory_bytes.map(|limit| json!({"limit": limit, "swap": swap}));
    json!({
        "devices": rules,
        "cpu": cpu,
        "memory": memory,
        "pids": pids.map(|limit| json!({"limit": limit})),
    })
}

fn text(path: &std::path::Path) -> Result<&str, OciError> {
    path.to_str().ok_or_else(|| OciError::Path(path.to_owned()))
}

/// Drops null members, which `oci_spec` refuses in some places.
fn without_null(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(name, value)| (name, without_null(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_null).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_overrides_the_image_in_place_and_a_search_path_is_always_there() {
        let image = ["A=image", "B=image"].map(str::to_owned);
        let own =
            [("B", "own"), ("C", "x=y")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all = environment(&image, &own);
        assert_eq!(all[..3], ["A=image", "B=own", "C=x=y"]);
        assert!(all[3].starts_with("PATH=/"));
    }

    #[test]
    fn a_path_of_the_image_is_kept() {
        assert_eq!(environment(&["PATH=/a".to_owned()], &[]), ["PATH=/a"]);
    }

    #[test]
    fn absent_members_are_left_out_at_every_depth() {
        let value = json!({"a": null, "b": [{"c": null, "d": 1}]});
        assert_eq!(without_null(value), json!({"b": [{"d": 1}]}));
    }
}
