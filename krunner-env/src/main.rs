//! krunner, the runner inside kernel containers: speaks with the agent over two ZeroMQ sockets and runs the user's code.
//!
//! One static program without an interpreter, so that it runs in every image, an empty one included. One thread, one event loop.
//!
//! In reading order: [`args`] the command line; [`init`] and [`accounts`] what happens as root; [`runner`] the event loop and the order of
//! runs; [`wire`] ops and records; [`link`] the sockets; [`plan`] and [`language`] from an op to commands; [`command`] a batch program;
//! [`interpreter`] the Python of queries; [`input`] user input for batch programs; [`sys`] Linux.

mod accounts;
mod args;
mod command;
mod environ;
mod init;
mod input;
mod interpreter;
mod language;
mod link;
mod log;
mod output;
mod plan;
mod runner;
mod settings;
mod sys;
mod token;
mod wire;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use args::{Invocation, Options};

fn main() -> ExitCode {
    sys::fd::fill_standard_fds();
    let invocation = match args::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(complaint) => {
            eprintln!("krunner: {complaint}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    let result = match invocation {
        Invocation::Help => {
            println!("{}", args::USAGE);
            Ok(())
        }
        Invocation::Input(prompt) => ask(prompt.as_deref().unwrap_or_default()),
        Invocation::Init(options) => init::set_up(&options.work_dir).and_then(|()| run(&options)),
        Invocation::Run(options) => run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("krunner: {complaint}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    runner::Runner::start(options)?
        .run()
        .map_err(|error| format!("the event loop ended: {error}"))
}

/// `krunner input`: for programs that cannot open sockets themselves.
#[allow(
    clippy::disallowed_methods,
    reason = "a program of its own; its parent krunner tells it the addresses this way"
)]
fn ask(prompt: &str) -> Result<(), String> {
    let variable =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let mut stdout = std::io::stdout();
    let mut answer = Vec::new();
    let asked = stdout
        .write_all(prompt.as_bytes())
        .and_then(|()| stdout.flush())
        .and_then(|()| {
            match UnixStream::connect(variable(
                "_BACKEND_INPUT_SOCKET",
                "/tmp/bai-user-input.sock",
            )) {
                Ok(mut stream) => stream.read_to_end(&mut answer),
                // A literal address: a static program must not look names up.
                Err(_) => TcpStream::connect(format!(
                    "127.0.0.1:{}",
                    variable("_BACKEND_INPUT_PORT", "65000")
                ))?
                .read_to_end(&mut answer),
            }
        });
    asked.map_err(|error| format!("user input is not available: {error}"))?;
    answer.push(b'\n');
    stdout
        .write_all(&answer)
        .map_err(|error| format!("cannot write the answer: {error}"))
}
