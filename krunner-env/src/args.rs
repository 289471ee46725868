//! The command line: our own form, and the forms in which 19.03 and 26.x call the Python runner.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// How krunner is called.
pub(crate) const USAGE: &str = "\
usage: krunner init [OPTIONS] -- TYPE [PATH]   set up the user as root, then run
       krunner [OPTIONS] TYPE [PATH]           run the kernel: TYPE is python, c, ..., PATH its interpreter or compiler
       krunner -m ai.backend.kernel TYPE [PATH]
       krunner input [PROMPT]                  ask the session's user for a line (from a batch program)
options: --debug, --config-dir DIR (/home/config), --work-dir DIR (/home/work), --bind ADDRESS (0.0.0.0),
         --replin PORT (2000), --replout PORT (2001), --input-port PORT (65000), 0 takes a free port,
         --input-socket PATH (/tmp/bai-user-input.sock), --ports-file PATH (the bound ports are written there)";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// Set up the user, then run.
    Init(Options),
    /// Run as who we are.
    Run(Options),
    /// Ask the session's user for a line, with this prompt.
    Input(Option<String>),
    /// Print [`USAGE`].
    Help,
}

/// The settings of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// `python`, `c`, …: a row of the language table.
    pub(crate) runtime_type: String,
    /// The interpreter or compiler that the image names.
    pub(crate) runtime_path: Option<PathBuf>,
    /// More words in the container's log.
    pub(crate) debug: bool,
    /// Where `environ.txt` and `intrinsic-ports.json` are.
    pub(crate) config_dir: PathBuf,
    /// The home and working folder of user code.
    pub(crate) work_dir: PathBuf,
    /// The address of the two sockets.
    pub(crate) bind: Ipv4Addr,
    /// The port for ops.
    pub(crate) replin: Option<u16>,
    /// The port for records.
    pub(crate) replout: Option<u16>,
    /// The port on 127.0.0.1 where batch programs ask for input.
    pub(crate) input_port: u16,
    /// The Unix socket for the same.
    pub(crate) input_socket: PathBuf,
    /// Where to write the bound ports.
    pub(crate) ports_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime_type: String::new(),
            runtime_path: None,
            debug: false,
            config_dir: PathBuf::from("/home/config"),
            work_dir: PathBuf::from("/home/work"),
            bind: Ipv4Addr::UNSPECIFIED,
            replin: None,
            replout: None,
            input_port: 65000,
            input_socket: PathBuf::from("/tmp/bai-user-input.sock"),
            ports_file: None,
        }
    }
}

/// Reads the arguments, the program's name not among them.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, String> {
    let mut args = args.into_iter().peekable();
    let command = args.peek().and_then(|arg| arg.to_str()).map(str::to_owned);
    match command.as_deref() {
        None => Err("no runtime type given".to_owned()),
        Some("-h" | "--help") => Ok(Invocation::Help),
        Some("input") => Ok(Invocation::Input(
            args.nth(1)
                .map(|prompt| prompt.to_string_lossy().into_owned()),
        )),
        Some("init") => options(args.skip(1)).map(Invocation::Init),
        Some(_) => options(args).map(Invocation::Run),
    }
}

fn options(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut positional = Vec::new();
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            // Switches of the Python interpreter that the agents write before the module.
            "--" | "-s" | "-u" | "-I" => {}
            "-m" => drop(value()?),
            "--debug" => options.debug = true,
            "--config-dir" => options.config_dir = value()?.into(),
            "--work-dir" => options.work_dir = value()?.into(),
            "--input-socket" => options.input_socket = value()?.into(),
            "--ports-file" => options.ports_file = Some(value()?.into()),
            "--bind" => options.bind = number(&name, &value()?)?,
            "--replin" => options.replin = Some(number(&name, &value()?)?),
            "--replout" => options.replout = Some(number(&name, &value()?)?),
            "--input-port" => options.input_port = number(&name, &value()?)?,
            _ if name.starts_with('-') => return Err(format!("unknown option {name}")),
            _ => positional.push(arg),
        }
    }
    let mut positional = positional.into_iter();
    let runtime_type = positional.next().ok_or("no runtime type given")?;
    options.runtime_type = runtime_type
        .into_string()
        .map_err(|name| format!("runtime type {} is not text", name.display()))?;
    options.runtime_path = positional
        .next()
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    match positional.next() {
        Some(more) => Err(format!("unexpected argument {}", more.display())),
        None => Ok(options),
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &OsString) -> Result<T, String> {
    let text = value.to_string_lossy();
    text.parse()
        .map_err(|_| format!("{name}: {text} is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn plain(runtime_type: &str, path: Option<&str>) -> Options {
        Options {
            runtime_type: runtime_type.into(),
            runtime_path: path.map(PathBuf::from),
            ..Options::default()
        }
    }

    #[test]
    fn the_call_of_1903_is_understood() {
        assert_eq!(
            parsed("-m ai.backend.kernel python /usr/bin/python"),
            Ok(Invocation::Run(plain("python", Some("/usr/bin/python"))))
        );
        assert_eq!(
            parsed("-m ai.backend.kernel c"),
            Ok(Invocation::Run(plain("c", None)))
        );
    }

    #[test]
    fn the_call_of_26_is_understood() {
        let expected = Options {
            debug: true,
            ..plain("python", None)
        };
        assert_eq!(
            parsed("-s -m ai.backend.kernel --debug python"),
            Ok(Invocation::Run(expected))
        );
    }

    #[test]
    fn init_takes_options_before_the_runtime() {
        let expected = Options {
            replin: Some(3000),
            ..plain("python", Some("/opt/python"))
        };
        assert_eq!(
            parsed("init --replin 3000 -- python /opt/python"),
            Ok(Invocation::Init(expected))
        );
    }

    #[test]
    fn a_wrong_call_names_what_is_wrong() {
        assert_eq!(parsed(""), Err("no runtime type given".into()));
        assert_eq!(
            parsed("--replin x python"),
            Err("--replin: x is not valid".into())
        );
        assert_eq!(
            parsed("--nonsense python"),
            Err("unknown option --nonsense".into())
        );
        assert_eq!(parsed("python a b"), Err("unexpected argument b".into()));
    }

    #[test]
    fn input_is_a_command_of_its_own() {
        assert_eq!(
            parse(["input", "your name? "].map(OsString::from)),
            Ok(Invocation::Input(Some("your name? ".into())))
        );
    }
}
