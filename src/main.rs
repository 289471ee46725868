//! The command: flags, logging, signals and the exit status.

use std::process::ExitCode;

use backendai_agent::cli::{self, Cli};
use backendai_agent::sys::memory;
use clap::Parser;

fn main() -> ExitCode {
    // A monitor or holder must never have a second thread, so it is told from the rest before anything else.
    #[cfg(feature = "youki")]
    if let Some(code) = backendai_agent::backends::youki::helper_main() {
        return code;
    }
    memory::set_up();
    let mut cli = Cli::parse();
    if let Err(error) = cli::prepare(&mut cli) {
        eprintln!("backendai-agent: {error:#}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("backendai-agent: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::main(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("backendai-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
