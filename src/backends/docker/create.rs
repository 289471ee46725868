//! A container spec in Docker's words, as the Python agent says them (19.03 agent, `_create_kernel`).

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount as DockerMount, MountType, PortBinding as DockerPort,
};

use super::{LABEL_ATTEMPT, device, failed};
use crate::runtime::{
    ContainerSpec, DEFAULT_CAPABILITIES, DeviceNode, Limits, Mount, MountKind, NetworkMode, Result,
    RuntimeError, Seccomp,
};

/// Signal by which Docker stops a container (19.03 agent).
const STOP_SIGNAL: &str = "SIGINT";
/// Where a kernel finds its configuration. The Python agent looks for a kernel's `resource.txt` through the bind of that
/// target, and only there (19.03 agent, `get_resource_spec_from_container`).
const CONFIG: &str = "/home/config";
/// Files of a log: the current one and the one before, so that at least half of the limit is kept.
const LOG_FILES: u64 = 2;

/// The body of the request that makes the container. Device nodes that the host does not have are made in `devices`;
/// `parent` is the cgroup where the limits are applied already.
pub(super) fn body(
    spec: &ContainerSpec,
    devices: &Path,
    parent: Option<&Path>,
) -> Result<ContainerCreateBody> {
    let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    labels.insert(LABEL_ATTEMPT.to_owned(), spec.id.0.clone());
    let mut host = HostConfig {
        binds: config_bind(spec)?,
        mounts: Some(mounts(spec)?),
        tmpfs: Some(tmpfs(spec)?),
        devices: Some(device_mappings(devices, &spec.devices)?),
        port_bindings: Some(
            spec.ports
                .iter()
                .map(|port| {
                    let binding = DockerPort {
                        host_ip: None,
                        host_port: Some(port.host.to_string()),
                    };
                    (tcp(port.container), Some(vec![binding]))
                })
                .collect(),
        ),
        publish_all_ports: Some(false),
        network_mode: match spec.network {
            NetworkMode::Bridge => None,
            NetworkMode::None => Some("none".to_owned()),
            NetworkMode::Host => Some("host".to_owned()),
        },
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        init: Some(true),
        privileged: Some(false),
        shm_size: spec.limits.shm_bytes.map(signed),
        log_config: Some(log(spec.log_limit)),
        ..HostConfig::default()
    };
    secure(&mut host, spec);
    match parent {
        Some(parent) => host.cgroup_parent = Some(utf8(parent)?),
        None => limit(&mut host, &spec.limits),
    }
    Ok(ContainerCreateBody {
        hostname: spec.hostname.clone(),
        image: Some(spec.image.clone()),
        user: Some("0:0".to_owned()),
        // Neither terminal nor standard input: then both streams are kept byte for byte, as other engines keep them.
        tty: Some(false),
        open_stdin: Some(false),
        stop_signal: Some(STOP_SIGNAL.to_owned()),
        exposed_ports: Some(spec.ports.iter().map(|port| tcp(port.container)).collect()),
        // The image's own command is not added to an entry point that is given.
        entrypoint: Some(spec.args.clone()),
        env: Some(
            spec.env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        ),
        working_dir: Some(utf8(&spec.cwd)?),
        labels: Some(labels),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    })
}

/// A limit that dockerd leaves out is told in the warnings of its answer only.
pub(super) fn discarded(warnings: &[String]) -> Option<&str> {
    let signs = [
        "discarded",
        "limited without",
        "does not support",
        "not available",
    ];
    let is_one = |text: &&String| {
        let text = text.to_lowercase();
        signs.iter().any(|sign| text.contains(sign))
    };
    warnings.iter().find(is_one).map(String::as_str)
}

fn secure(host: &mut HostConfig, spec: &ContainerSpec) {
    let mut options = Vec::new();
    if spec.seccomp == Seccomp::Unconfined {
        options.extend(["seccomp=unconfined", "apparmor=unconfined"].map(str::to_owned));
    }
    if spec.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    host.security_opt = (!options.is_empty()).then_some(options);
    let mut wanted: Vec<&str> = spec.capabilities.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    // Docker's own set is the same; it is named only when it is changed.
    if wanted != DEFAULT_CAPABILITIES {
        host.cap_drop = Some(vec!["ALL".to_owned()]);
        let plain = |name: &&str| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
        host.cap_add = Some(wanted.iter().map(plain).collect());
    }
}

fn limit(host: &mut HostConfig, limits: &Limits) {
    host.cpu_quota = limits.cpu_quota_us;
    host.cpu_period = limits
        .cpu_period_us
        .or(limits.cpu_quota_us.map(|_| 100_000))
        .map(signed);
    host.cpuset_cpus.clone_from(&limits.cpuset);
    host.memory = limits.memory_bytes;
    // Docker counts memory and swap together, and gives as much swap as memory when it is told nothing.
    host.memory_swap = limits.memory_bytes.map(|memory| {
        limits
            .swap_bytes
            .map_or(-1, |swap| memory.saturating_add(swap))
    });
    host.pids_limit = limits.pids;
}

/// The kernel's configuration in the form `a:b:ro`, for the Python agent that takes the kernel over.
fn config_bind(spec: &ContainerSpec) -> Result<Option<Vec<String>>> {
    let Some((source, mount)) = bind_mounts(spec).find(|(source, mount)| is_config(source, mount))
    else {
        return Ok(None);
    };
    let access = if mount.read_only { "ro" } else { "rw" };
    Ok(Some(vec![format!("{}:{CONFIG}:{access}", utf8(source)?)]))
}

/// The other binds as mounts: a bind in the form `a:b:ro` makes a source that is not there, and knows no path with a colon.
fn mounts(spec: &ContainerSpec) -> Result<Vec<DockerMount>> {
    bind_mounts(spec)
        .filter(|(source, mount)| !is_config(source, mount))
        .map(|(source, mount)| {
            Ok(DockerMount {
                target: Some(utf8(&mount.target)?),
                source: Some(utf8(source)?),
                typ: Some(MountType::BIND),
                read_only: Some(mount.read_only),
                ..DockerMount::default()
            })
        })
        .collect()
}

fn bind_mounts(spec: &ContainerSpec) -> impl Iterator<Item = (&Path, &Mount)> {
    spec.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind(source) => Some((source.as_path(), mount)),
        MountKind::Tmpfs(_) => None,
    })
}

fn is_config(source: &Path, mount: &Mount) -> bool {
    mount.target == Path::new(CONFIG) && !source.to_string_lossy().contains(':')
}

fn device_mappings(folder: &Path, nodes: &[DeviceNode]) -> Result<Vec<DeviceMapping>> {
    let mapping = |node: &DeviceNode| {
        let action = format!("making device node {}", node.path.display());
        let host = device::on_host(folder, node).map_err(failed(action))?;
        Ok(DeviceMapping {
            path_on_host: Some(utf8(&host)?),
            path_in_container: Some(utf8(&node.path)?),
            cgroup_permissions: Some(node.access.clone()),
        })
    };
    nodes.iter().map(mapping).collect()
}

fn tmpfs(spec: &ContainerSpec) -> Result<HashMap<String, String>> {
    let mut all = HashMap::new();
    for mount in &spec.mounts {
        if let MountKind::Tmpfs(size) = mount.kind {
            let access = if mount.read_only { "ro" } else { "rw" };
            let options = format!("size={size},mode=1777,exec,{access}");
            all.insert(utf8(&mount.target)?, options);
        }
    }
    Ok(all)
}

fn log(limit: u64) -> HostConfigLogConfig {
    let size = (limit / LOG_FILES).max(4096);
    let options = [
        ("max-size", size.to_string()),
        ("max-file", LOG_FILES.to_string()),
    ];
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(options.map(|(name, value)| (name.to_owned(), value)).into()),
    }
}

fn tcp(port: u16) -> String {
    format!("{port}/tcp")
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        RuntimeError::Invalid(format!("path {path:?} is not valid UTF-8; rename it"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::{ContainerId, PortBinding};

    fn kernel() -> ContainerSpec {
        let mount = |source: &str, target: &str, read_only| Mount {
            kind: MountKind::Bind(source.into()),
            target: target.into(),
            read_only,
        };
        ContainerSpec {
            id: ContainerId("0a".repeat(32)),
            name: "kernel.python.1".to_owned(),
            image: "index.docker.io/lablup/python:3.6".to_owned(),
            args: ["/opt/backend.ai/bin/krunner", "init"]
                .map(str::to_owned)
                .into(),
            env: vec![("A".to_owned(), "x=y".to_owned())],
            cwd: "/home/work".into(),
            hostname: None,
            mounts: vec![
                mount("/scratch/config", "/home/config", true),
                mount("/with:colon", "/home/work", false),
            ],
            devices: Vec::new(),
            limits: Limits {
                cpu_quota_us: Some(200_000),
                cpuset: Some("0,1".to_owned()),
                memory_bytes: Some(1 << 30),
                swap_bytes: Some(1 << 30),
                pids: Some(100),
                ..Limits::default()
            },
            network: NetworkMode::Bridge,
            ports: vec![PortBinding {
                host: 30001,
                container: 2000,
            }],
            labels: [("l".to_owned(), "v".to_owned())].into(),
            seccomp: Seccomp::Default,
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).into(),
            no_new_privileges: false,
            log_limit: 16 << 20,
        }
    }

    fn json_of(spec: &ContainerSpec, parent: Option<&Path>) -> Value {
        let body = body(spec, Path::new("/nowhere"), parent).expect("a body");
        serde_json::to_value(body).expect("plain data")
    }

    #[test]
    fn a_kernel_is_asked_for_in_the_python_agents_words() {
        let body = json_of(&kernel(), None);
        let host = &body["HostConfig"];
        assert_eq!(body["Image"], "index.docker.io/lablup/python:3.6");
        assert_eq!(body["StopSignal"], "SIGINT");
        assert_eq!(body["ExposedPorts"], json!({"2000/tcp": {}}));
        assert_eq!(
            body["Entrypoint"],
            json!(["/opt/backend.ai/bin/krunner", "init"])
        );
        assert_eq!(
            (&body["Cmd"], &body["Hostname"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&body["Env"], &body["WorkingDir"]),
            (&json!(["A=x=y"]), &json!("/home/work"))
        );
        assert_eq!(
            host["PortBindings"],
            json!({"2000/tcp": [{"HostPort": "30001"}]})
        );
        assert_eq!(
            (&host["Init"], &host["PublishAllPorts"]),
            (&json!(true), &json!(false))
        );
        for absent in [
            "NetworkMode",
            "SecurityOpt",
            "CapAdd",
            "CapDrop",
            "RestartPolicy",
            "CgroupParent",
        ] {
            assert_eq!(host[absent], Value::Null, "{absent}");
        }
    }

    #[test]
    fn limits_are_dockers_own_and_swap_counts_memory_too() {
        let host = json_of(&kernel(), None)["HostConfig"].clone();
        assert_eq!(
            (&host["CpuPeriod"], &host["CpuQuota"]),
            (&json!(100_000), &json!(200_000))
        );
        assert_eq!(
            (&host["CpusetCpus"], &host["PidsLimit"]),
            (&json!("0,1"), &json!(100))
        );
        assert_eq!(
            (&host["Memory"], &host["MemorySwap"]),
            (&json!(1_i64 << 30), &json!(2_i64 << 30))
        );
        let mut spec = kernel();
        spec.limits.swap_bytes = None;
        let host = json_of(&spec, None)["HostConfig"].clone();
        assert_eq!(host["MemorySwap"], json!(-1), "as much as there is");
    }

    #[test]
    fn limits_of_a_cgroup_of_ours_are_not_said_twice() {
        let host = json_of(&kernel(), Some(Path::new("/backendai/a")))["HostConfig"].clone();
        assert_eq!(host["CgroupParent"], "/backendai/a");
        for absent in [
            "Memory",
            "MemorySwap",
            "CpuQuota",
            "CpusetCpus",
            "PidsLimit",
        ] {
            assert_eq!(host[absent], Value::Null, "{absent}");
        }
    }

    #[test]
    fn a_mount_may_hold_a_colon_and_makes_no_source() {
        let host = json_of(&kernel(), None)["HostConfig"].clone();
        let mount = json!({"Type": "bind", "Source": "/with:colon", "Target": "/home/work", "ReadOnly": false});
        assert_eq!(host["Mounts"][0], mount);
    }

    #[test]
    fn the_python_agent_finds_the_configuration_of_a_kernel_of_ours() {
        let mut spec = kernel();
        let host = json_of(&spec, None)["HostConfig"].clone();
        assert_eq!(host["Binds"], json!(["/scratch/config:/home/config:ro"]));
        assert_eq!(host["Mounts"].as_array().map(Vec::len), Some(1));
        spec.mounts[0].kind = MountKind::Bind("/with:colon/config".into());
        let host = json_of(&spec, None)["HostConfig"].clone();
        assert_eq!(host["Binds"], Value::Null);
        assert_eq!(host["Mounts"][0]["Source"], "/with:colon/config");
    }

    #[test]
    fn the_log_is_bounded_over_all_its_files() {
        let log = json_of(&kernel(), None)["HostConfig"]["LogConfig"].clone();
        let wanted =
            json!({"Type": "json-file", "Config": {"max-size": "8388608", "max-file": "2"}});
        assert_eq!(log, wanted);
    }

    #[test]
    fn rights_that_differ_from_dockers_own_are_said() {
        let mut spec = kernel();
        spec.capabilities = vec!["CAP_CHOWN".to_owned()];
        spec.no_new_privileges = true;
        spec.seccomp = Seccomp::Unconfined;
        let host = json_of(&spec, None)["HostConfig"].clone();
        assert_eq!(
            (&host["CapDrop"], &host["CapAdd"]),
            (&json!(["ALL"]), &json!(["CHOWN"]))
        );
        let options = json!([
            "seccomp=unconfined",
            "apparmor=unconfined",
            "no-new-privileges"
        ]);
        assert_eq!(host["SecurityOpt"], options);
    }

    #[test]
    fn the_id_that_was_asked_for_is_a_label() {
        let labels = json_of(&kernel(), None)["Labels"].clone();
        assert_eq!(labels, json!({"l": "v", LABEL_ATTEMPT: "0a".repeat(32)}));
    }

    #[test]
    fn a_discarded_limit_is_told_from_other_warnings() {
        let swap = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.";
        let other = "IPv4 forwarding is disabled. Networking will not work.";
        let pids = "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.";
        assert_eq!(discarded(&[other.to_owned()]), None);
        assert_eq!(discarded(&[other.to_owned(), pids.to_owned()]), Some(pids));
        assert_eq!(discarded(&[swap.to_owned()]), Some(swap));
    }
}
