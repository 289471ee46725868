//! `backendai-agent run`: code in a new kernel on this machine, with no manager, etcd or Redis, through the same agent
//! that serves a manager.

pub mod job;
pub mod session;
pub mod terminal;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::job::{Job, Stop};
use self::session::Session;
use self::terminal::Terminal;
use super::signals::Signals;
use super::{CommonArgs, KrunnerOptions, node};
use crate::config::KrunnerSource;
use crate::kernel::runner::link::Connect;
use crate::kernel::runner::zmq::ZmqConnect;
use crate::krunner::KrunnerEnv;
use crate::runtime::{ContainerRuntime, ImageStore};

/// Name of the folder of runs in the state folder.
pub const FOLDER: &str = "runs";
/// Name of the folder of scratch folders in a run's folder, which is called as its kernel.
pub const SCRATCH: &str = "scratch";

/// Run code in a new kernel.
///
/// Without CODE, FILE or CMD the code is read from standard input. Files are copied into the kernel's work folder; the
/// first one is run.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Without CODE, FILE or CMD the code is read from standard input. Files are copied into the kernel's \
                        work folder; the first one is run. The exit status is the code's."
)]
pub struct RunArgs {
    /// Image to run in [default: the first kernel image of the store].
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// Code to run in the image's interpreter.
    #[arg(short = 'c', long = "code", value_name = "CODE", conflicts_with_all = ["files", "exec", "build"])]
    pub code: Option<String>,
    /// Files to copy into the kernel.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Shell command to run after the files are there; `*` lets the runner choose.
    #[arg(long, value_name = "CMD")]
    pub exec: Option<String>,
    /// Shell command to run before that; `*` lets the runner choose.
    #[arg(long, value_name = "CMD")]
    pub build: Option<String>,
    /// CPU shares; two are one core.
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpu: String,
    /// Memory, such as 512m or 2g.
    #[arg(long, value_name = "SIZE", default_value = "1g")]
    pub mem: String,
    /// Environment variable for the code; repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Folder of this machine to show at /home/work/NAME; repeatable.
    #[arg(long, value_name = "FOLDER:NAME[:ro]")]
    pub mount: Vec<String>,
    /// User inside, in images that let it be chosen [default: as root SUDO_UID, else the owner of the current folder,
    /// but for root 9001].
    #[arg(long, value_name = "N")]
    pub uid: Option<u32>,
    /// Ends the kernel after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// What it gets at `/opt/backend.ai`.
    #[command(flatten)]
    pub krunner: KrunnerOptions,
    /// No progress on standard error.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Where a run happens.
#[derive(Clone, Debug)]
pub struct Place {
    /// The engine.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its images.
    pub images: Arc<dyn ImageStore>,
    /// The way to runners.
    pub connect: Arc<dyn Connect>,
    /// What is shown at `/opt/backend.ai`.
    pub krunner: KrunnerEnv,
    /// Folder below which the run keeps its files.
    pub folder: PathBuf,
    /// Whether the engine listens on forwarded host ports itself.
    pub listens: bool,
    /// User and group of its programs where these cannot be others.
    pub own_user: Option<(u32, u32)>,
}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(
    args: RunArgs,
    common: CommonArgs,
    krunner: KrunnerSource,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let place = open(&common, &krunner, args.uid).await?;
    let (sender, stops) = mpsc::channel(4);
    let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
    let listening = listen(sender)?;
    let until = ended.clone();
    tasks.spawn(async move {
        until.run_until_cancelled(listening).await;
    });
    let terminal = Terminal::standard(!args.quiet);
    let code = Box::pin(run(&args, &place, terminal, stops, began)).await;
    ended.cancel();
    Ok(ExitCode::from(code?))
}

/// Runs a job from beginning to end; gives the exit status for the shell.
///
/// # Errors
/// Whatever kept the code from being run; nothing is left behind then either.
pub async fn run(
    args: &RunArgs,
    place: &Place,
    terminal: Terminal,
    stops: mpsc::Receiver<Stop>,
    began: Instant,
) -> anyhow::Result<u8> {
    let (session, events) = Session::open(place, args).await?;
    let mut job = Job::new(args, &session, terminal, stops, began);
    let code = job.run(events).await;
    session.close().await;
    code
}

/// Turns signals into requests to stop.
fn listen(stops: mpsc::Sender<Stop>) -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = Signals::new()?;
    Ok(async move {
        loop {
            let stop = match signals.next().await {
                Signal::INT => Stop::Interrupt,
                _ => Stop::Terminate,
            };
            if stops.send(stop).await.is_err() {
                return;
            }
        }
    })
}

async fn open(
    common: &CommonArgs,
    krunner: &KrunnerSource,
    uid: Option<u32>,
) -> anyhow::Result<Place> {
    let engine = node::open_engine(common).await?;
    Ok(Place {
        own_user: node::own_user(&engine, "--uid", uid)?,
        runtime: engine.runtime,
        images: engine.images,
        connect: Arc::new(ZmqConnect),
        krunner: node::krunner(common, krunner).await?,
        // Not in the run folder, which is usually memory: the code may write much.
        folder: common.state_dir.join(FOLDER),
        listens: engine.listens,
    })
}
