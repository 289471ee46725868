//! The program: a monitor, a collector of a log, a holder of namespaces, a listener on ports, or what stands before runc,
//! told by its command line.
//!
//! As a monitor, standard input is what the container prints, standard output is only held open (a lock of the agent's).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use backendai_monitor::{Collect, Forward, Hold, Watch, handler};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    let done = if let Some(watch) = Watch::from_args(args.iter().cloned()) {
        monitor(&watch)
    } else if let Some(collect) = Collect::from_args(args.iter().cloned()) {
        collect.run()
    } else if let Some(hold) = Hold::from_args(args.iter().cloned()) {
        hold.run()
    } else if let Some(forward) = Forward::from_args(args.iter().cloned()) {
        forward.run()
    } else if let Some(error) = handler::become_real(&name, &args) {
        Err(error)
    } else {
        return ExitCode::from(2);
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn monitor(watch: &Watch) -> io::Result<()> {
    let output = io::stdin().as_fd().try_clone_to_owned()?;
    watch.run(&File::from(output))
}
