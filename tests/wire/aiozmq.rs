//! The RPC server asked by the library that the 19.03 manager uses: aiozmq 0.7.1 under Python 3.6.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, Weak};

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::{ConsoleItem, Reply, Request, RunResult, RunStatus};
use bytes::Bytes;

use crate::rpc::Rpc;
use crate::stub::StubNode;

/// The versions that the manager was released with.
const PACKAGES: [&str; 3] = ["aiozmq==0.7.1", "pyzmq==18.1.0", "msgpack==0.6.2"];
const EXPECTED: &str = r#"ping 'hello'
number '5'
execute {'runId': 'r', 'status': 'finished', 'exitCode': 0, 'options': None, 'console': (('stdout', 'hi\n'),), 'files': ()}
cancelled TypeError ("'NoneType' object is not iterable",)
empty run ParametersError ("Invalid value for argument 'run_id': DataError({0: DataError(blank value is not allowed), 1: DataError(value should be None)})",)
unknown KeyError ('unknown',)
arity ParametersError ("TypeError('too many positional arguments',)",)
create GenericError ('ai.backend.agent.exception.InsufficientResource', ('DiscretePropertyAllocMap: insufficient allocatable amount!', 'cpu', 'cpu', '10', '2'), "InsufficientResource('DiscretePropertyAllocMap: insufficient allocatable amount!', 'cpu', 'cpu', '10', '2')")
restart FileNotFoundError (2, 'No such file or directory')
late TimeoutError ()
download b'tar\xff'
upload None
missing NotFoundError ('hello',)
meanwhile 'x'
slow is pending
open the gate None
slow {'logs': 'l'}
big True
"#;

fn answer(request: &Request, node: &OnceLock<Weak<StubNode>>) -> Result<Reply, AgentError> {
    Ok(match request {
        Request::Execute(execute) if execute.kernel.as_str() == "cancelled" => Reply::Cancelled,
        Request::Execute(_) => Reply::Run(Box::new(RunResult {
            run: "r".to_owned(),
            status: RunStatus::Finished,
            exit_code: Some(0),
            options: None,
            console: vec![ConsoleItem::Stdout("hi\n".to_owned())],
            files: Vec::new(),
        })),
        Request::GetLogs { kernel } if kernel.as_str() == "slow" => Reply::Logs("l".to_owned()),
        Request::GetLogs { kernel } => return Err(AgentError::UnknownKernel(kernel.clone())),
        Request::CreateKernel { config, .. } => {
            assert!(!config.mounts[0].read_only);
            return Err(AgentError::InsufficientResource {
                map: "DiscretePropertyAllocMap",
                device: "cpu".to_owned(),
                slot: "cpu".to_owned(),
                requested: config.slots.get("cpu").unwrap().value().to_string(),
                available: "2".to_owned(),
            });
        }
        Request::RestartKernel { kernel, .. } => return Err(AgentError::NoScratch(kernel.clone())),
        Request::ListFiles { .. } => return Err(AgentError::TimedOut("a listing".to_owned())),
        Request::DownloadFile { .. } => Reply::Archive(Bytes::from_static(b"tar\xff")),
        Request::UploadFile { data, .. } => {
            assert_eq!(&data[..], b"\0\xff");
            Reply::Done
        }
        Request::RefreshIdle { .. } => {
            let node = node.get().and_then(Weak::upgrade).unwrap();
            node.gate.add_permits(1);
            Reply::Done
        }
        other => panic!("not scripted: {other:?}"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_managers_own_library_understands_every_answer() {
    let Some(python) = tokio::task::spawn_blocking(environment).await.unwrap() else {
        eprintln!("skipped: no Python 3.6 (set BACKENDAI_PY36, or install it with pyenv)");
        return;
    };
    let node: Arc<OnceLock<Weak<StubNode>>> = Arc::default();
    let known = node.clone();
    let rpc = Rpc::start(move |request| answer(request, &known)).await;
    node.set(Arc::downgrade(&rpc.node)).unwrap();
    let port = rpc.address.rsplit(':').next().unwrap().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        Command::new("timeout")
            .args(["120".as_ref(), python.as_os_str()])
            .args(["-c", include_str!("aiozmq_client.py"), &port])
            .output()
            .unwrap()
    });
    let output = output.await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert_eq!(printed, EXPECTED, "{problem}");
}

/// The interpreter of an environment that has the library; made once and kept between runs.
fn environment() -> Option<PathBuf> {
    let base = find_python()?;
    let home = PathBuf::from(std::env::var_os("HOME")?);
    let folder = home.join(".cache/backendai-agent/aiozmq-0.7.1");
    let python = folder.join("bin/python");
    if python.exists() {
        return Some(python);
    }
    // Made under another name, so that a broken or a concurrent attempt leaves nothing half done.
    std::fs::create_dir_all(folder.parent()?).unwrap();
    let making = folder.with_extension(format!("{}.tmp", std::process::id()));
    succeed(Command::new(base).args(["-m", "venv"]).arg(&making));
    let mut pip = Command::new(making.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet"]).args(PACKAGES);
    succeed(&mut pip);
    if std::fs::rename(&making, &folder).is_err() {
        std::fs::remove_dir_all(&making).unwrap();
    }
    Some(python)
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {problem}");
}

/// Python 3.6: the one that is named, pyenv's, or the path's.
fn find_python() -> Option<PathBuf> {
    let named = std::env::var_os("BACKENDAI_PY36").map(PathBuf::from);
    let works = |python: &PathBuf| {
        let version = Command::new(python).arg("--version").output();
        version.is_ok_and(|version| version.stdout.starts_with(b"Python 3.6"))
    };
    let home = std::env::var_os("HOME").unwrap_or_default();
    let versions = Path::new(&home).join(".pyenv/versions");
    let installed = std::fs::read_dir(versions).into_iter().flatten().flatten();
    let installed = installed.map(|entry| entry.path().join("bin/python3.6"));
    let mut candidates = named
        .into_iter()
        .chain(installed)
        .chain(["python3.6".into()]);
    candidates.find(works)
}
