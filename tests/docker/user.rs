//! An ordinary user's agent on the machine's dockerd, whose socket's group it is in.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::node::{IMAGE, Node};

/// The user, and a group that is none of the user's number.
const USER: u32 = 20_001;
const GROUP: u32 = 20_002;

/// A folder of the user's.
fn folder(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).expect("a folder");
    chown(&path, Some(USER), Some(GROUP)).expect("the tests run as root");
    path
}

/// What the user has.
struct User {
    home: PathBuf,
    program: PathBuf,
    endpoint: String,
}

impl User {
    fn new(node: &Node) -> Self {
        for way in [node.dir.path(), node.daemon.folder()] {
            fs::set_permissions(way, Permissions::from_mode(0o711)).expect("ours");
        }
        let program = node.dir.path().join("agent");
        fs::copy(env!("CARGO_BIN_EXE_backendai-agent"), &program).expect("a copy");
        Self {
            home: folder(node.dir.path(), "home"),
            program,
            endpoint: node.daemon.endpoint(),
        }
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// `backendai-agent run` by the user.
    fn run(&self, args: &[&str]) -> Output {
        // The socket's group is root.
        let ids = [
            format!("--reuid={USER}"),
            format!("--regid={GROUP}"),
            "--groups=0".to_owned(),
        ];
        Command::new("setpriv")
            .args(ids)
            .arg(&self.program)
            .args(["run", "--quiet", "--image", IMAGE])
            .args(args)
            .args(["--runtime=docker", "--runtime-endpoint", &self.endpoint])
            .arg("--state-dir")
            .arg(self.state())
            .arg("--run-dir")
            .arg(self.home.join("run"))
            .env_remove("SUDO_UID")
            .current_dir("/")
            .output()
            .expect("setpriv is installed")
    }
}

#[tokio::test]
async fn what_an_ordinary_users_kernel_writes_is_the_users_and_goes_with_it() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let user = User::new(&node);
    let out = folder(&user.home, "out");
    let script = "touch /home/work/mine /home/work/out/mine && id -u && id -g && stat -c '%u %g' /home/work/mine";
    let mount = format!("--mount={}:out", out.display());
    let run = user.run(&["--exec", script, &mount]);
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
    let runs = fs::read_dir(user.state().join("runs")).expect("a folder of runs");
    assert_eq!(runs.count(), 0, "{said}");
}

#[tokio::test]
async fn another_user_inside_is_refused_to_an_ordinary_user() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let user = User::new(&node);
    let own = USER.to_string();
    assert!(user.run(&["--exec=true", "--uid", &own]).status.success());
    let run = user.run(&["--exec=true", "--uid=5"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--uid 5: the agent is user 20001's"),
        "{said}"
    );
    assert_eq!(node.docker(&["ps", "--all", "--quiet"]), "");
}
