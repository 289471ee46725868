//! An ordinary user's agent on the machine's dockerd, whose socket's group it is in.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::node::{IMAGE, Node};

/// The user, and a group that is none of the user's number.
const USER: u32 = 20_001;
const GROUP: u32 = 20_002;

/// A folder of the user's.
fn folder(parent: &Path, name: &str) -> std::path::PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).expect("a folder");
    chown(&path, Some(USER), Some(GROUP)).expect("the tests run as root");
    path
}

#[tokio::test]
async fn what_an_ordinary_users_kernel_writes_is_the_users_and_goes_with_it() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    for way in [node.dir.path(), node.daemon.folder()] {
        fs::set_permissions(way, Permissions::from_mode(0o711)).expect("ours");
    }
    let home = folder(node.dir.path(), "home");
    let (state, out) = (home.join("state"), folder(&home, "out"));
    let program = node.dir.path().join("agent");
    fs::copy(env!("CARGO_BIN_EXE_backendai-agent"), &program).expect("a copy");
    // The socket's group is root.
    let ids = [
        format!("--reuid={USER}"),
        format!("--regid={GROUP}"),
        "--groups=0".to_owned(),
    ];
    let script = "touch /home/work/mine /home/work/out/mine && id -u && id -g && stat -c '%u %g' /home/work/mine";
    let run = Command::new("setpriv")
        .args(ids)
        .arg(&program)
        .args(["run", "--quiet", "--image", IMAGE, "--exec", script])
        .arg(format!("--mount={}:out", out.display()))
        .args(["--runtime=docker", "--runtime-endpoint"])
        .arg(node.daemon.endpoint())
        .arg("--state-dir")
        .arg(&state)
        .arg("--run-dir")
        .arg(home.join("run"))
        .env_remove("SUDO_UID")
        .current_dir("/")
        .output()
        .expect("setpriv is installed");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    assert_eq!(
        String::from_utf8_lossy(&run.stdout),
        format!("{USER}\n{GROUP}\n{USER} {GROUP}\n"),
        "{said}"
    );
    let mine = fs::metadata(out.join("mine")).expect("it stays");
    assert_eq!((mine.uid(), mine.gid()), (USER, GROUP));
    assert_eq!(node.docker(&["ps", "--all", "--quiet"]), "");
    let runs = fs::read_dir(state.join("runs")).expect("a folder of runs");
    assert_eq!(runs.count(), 0, "{said}");
}
