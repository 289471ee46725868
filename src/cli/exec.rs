//! `backendai-agent exec`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::signals::Signals;
use super::{CommonArgs, kernels, node, pair};
use crate::runtime::{ContainerRuntime, ContainerState, ExecOutput, ExecSpec};

/// Run a program in a kernel's container, and end with its exit status.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "The program comes after --. Its output is shown when it has ended, at most 16 MiB of each \
                        stream; it gets no input. The exit status is the program's. SIGINT, SIGTERM and SIGHUP kill the program."
)]
pub struct ExecArgs {
    /// Id of a kernel or a container, or its beginning
    #[arg(value_name = "KERNEL")]
    pub name: String,
    /// User id inside, and group id; the group is that of the same number when absent
    #[arg(long, value_name = "UID[:GID]", default_value = "0:0", value_parser = user)]
    pub user: (u32, u32),
    /// Working folder inside
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub workdir: PathBuf,
    /// Environment variable beside those of the container; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Kill the program after this many seconds; the exit status is 1 then
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Folder of the kernels' scratch folders [default: /var/cache/scratches, or the user's
    /// own state folder's scratches]
    #[arg(long, value_name = "PATH", env = "BACKEND_SCRATCH_ROOT")]
    pub scratch_root: Option<String>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such kernel, it does not run, or the engine does not answer.
pub async fn main(
    args: ExecArgs,
    common: &CommonArgs,
    scratch_root: PathBuf,
) -> anyhow::Result<ExitCode> {
    let engine = node::open_to_operate(common, scratch_root).await?;
    let runtime = engine.runtime;
    let mut signals = Signals::new()?;
    let ended = tokio::select! {
        output = exec(args, &*runtime) => Ok(output),
        signal = signals.next() => Err(signal),
    };
    // The program may have to be killed still.
    runtime.settle().await;
    let output = match ended {
        Ok(output) => output?,
        Err(signal) => {
            let status = u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX);
            return Ok(ExitCode::from(status));
        }
    };
    super::write(&mut io::stdout(), &output.stdout)?;
    super::write(&mut io::stderr(), &output.stderr)?;
    // What does not fit into a status is a failure all the same.
    Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(1)))
}

/// Runs the program.
///
/// # Errors
/// When there is no such kernel, it does not run, or the engine does not answer.
pub async fn exec(args: ExecArgs, runtime: &dyn ContainerRuntime) -> anyhow::Result<ExecOutput> {
    let container = kernels::find(runtime, &args.name).await?;
    anyhow::ensure!(
        container.state == ContainerState::Running,
        "container {} does not run; `backendai-agent ps` lists those that do",
        kernels::short(&container.id.0)
    );
    let spec = ExecSpec {
        args: args.command,
        env: args.env,
        cwd: args.workdir,
        user: args.user,
        time_limit: Duration::from_secs(args.timeout),
    };
    Ok(runtime.exec(&container.id, &spec).await?)
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err("it is not UID or UID:GID, in numbers".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_number_or_two() {
        assert_eq!(user("5"), Ok((5, 5)));
        assert_eq!(user("5:6"), Ok((5, 6)));
        for bad in ["", "me", "5:", ":5", "5:6:7", "-1"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }
}
