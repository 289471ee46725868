//! The program: standard input is what the container prints, standard output is only held open (a lock of the agent's).

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

use backendai_monitor::Watch;

fn main() -> ExitCode {
    let Some(watch) = Watch::from_args(std::env::args_os().skip(1)) else {
        return ExitCode::from(2);
    };
    let Ok(output) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    match watch.run(&File::from(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
