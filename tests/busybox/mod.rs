//! An image of busybox, and containers and programs of it, for every test of an engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use backendai_agent::runtime::{
    ContainerId, ContainerSpec, DEFAULT_CAPABILITIES, ExecSpec, LABEL_OWNER, Limits, NetworkMode,
    OWNER, Seccomp,
};

/// Name of the image.
pub const IMAGE: &str = "local/busybox:latest";

/// Makes the image's root file system.
pub fn root(root: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("folder");
    }
    // A link that must not lead out of the root when a file is put in its place.
    symlink("/etc/passwd", root.join("etc/hostname")).expect("link");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in "sh echo cat sleep ls id env nc touch mkdir mknod mount dd head tail kill grep readlink hostname wc pwd ip ps printf true stat unshare yes seq tr df sort sed cp".split(' ') {
        symlink("busybox", root.join("bin").join(name)).expect("link");
    }
}

/// Makes a tar of the image's root file system, unless it is there; its folder is the root's too.
pub fn tar(tar: &Path) {
    if tar.exists() {
        return;
    }
    let folder = tar.with_extension("");
    root(&folder);
    let mut archive = tar::Builder::new(fs::File::create(tar).expect("file"));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", &folder).expect("tar");
    archive.finish().expect("tar");
}

/// A container that runs a script.
pub fn shell(script: &str) -> ContainerSpec {
    let id = format!("{0}{0}", uuid::Uuid::new_v4().simple());
    ContainerSpec {
        name: format!("kernel.test.{id}"),
        id: ContainerId(id),
        image: IMAGE.to_owned(),
        args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: Vec::new(),
        cwd: "/".into(),
        hostname: Some("inside".to_owned()),
        mounts: Vec::new(),
        devices: Vec::new(),
        limits: Limits::default(),
        network: NetworkMode::None,
        ports: Vec::new(),
        labels: [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into(),
        seccomp: Seccomp::Default,
        capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).into(),
        no_new_privileges: true,
        log_limit: 1 << 20,
    }
}

/// A request to run a program as root.
pub fn exec_spec(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: (0, 0),
        time_limit: Duration::from_secs(60),
    }
}
