//! Errors as the 19.03 manager reads them: a Python exception's type, arguments and text form. The one place where
//! the agent's errors become names of Python classes.

use rmpv::Value;

use super::python;
use crate::agent::AgentError;
use crate::runtime::{RuntimeError, chain};

/// One argument of an exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
}

impl Argument {
    fn repr(&self) -> String {
        match self {
            Self::Text(text) => python::quote(text),
            Self::Int(number) => number.to_string(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Int(number) => (*number).into(),
        }
    }
}

impl<T: Into<String>> From<T> for Argument {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

/// A Python exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    class: &'static str,
    args: Vec<Argument>,
    repr: Option<String>,
}

impl WireError {
    /// An exception of the class (with its module) and these arguments.
    pub fn new(class: &'static str, args: Vec<Argument>) -> Self {
        Self {
            class,
            args,
            repr: None,
        }
    }

    /// `class` with one text.
    pub fn one(class: &'static str, text: impl Into<String>) -> Self {
        Self::new(class, vec![text.into().into()])
    }

    /// The call's name is unknown.
    pub fn not_found(method: &str) -> Self {
        Self::one("aiozmq.rpc.base.NotFoundError", method)
    }

    /// The arguments do not fit.
    pub fn parameters(text: impl Into<String>) -> Self {
        Self::one("aiozmq.rpc.base.ParametersError", text)
    }

    /// A run was cancelled. The manager knows this text and swallows it (Q1).
    pub fn cancelled() -> Self {
        Self::one("builtins.TypeError", "'NoneType' object is not iterable")
    }

    /// The error of a call; `execute` names unknown kernels its own way.
    pub fn from_agent(error: &AgentError, in_execute: bool) -> Self {
        match error {
            AgentError::UnknownKernel(_) if in_execute => {
                Self::one("builtins.RuntimeError", error.to_string())
            }
            AgentError::UnknownKernel(kernel) => Self::one("builtins.KeyError", kernel.as_str()),
            AgentError::InsufficientResource {
                map,
                device,
                slot,
                requested,
                available,
            } => Self::new(
                "ai.backend.agent.exception.InsufficientResource",
                vec![
                    format!("{map}: insufficient allocatable amount!").into(),
                    device.into(),
                    slot.into(),
                    requested.into(),
                    available.into(),
                ],
            ),
            AgentError::UnknownDevice(device) => Self::one("builtins.KeyError", device),
            AgentError::MissingSlot(_) => Self::new("builtins.AssertionError", Vec::new()),
            AgentError::Value(args) => {
                let args = args.iter().map(Argument::from).collect();
                Self::new("builtins.ValueError", args)
            }
            AgentError::Assertion(text) => Self::one("builtins.AssertionError", text),
            AgentError::FileNotFound(_) => {
                Self::one("builtins.FileNotFoundError", error.to_string())
            }
            AgentError::NoScratch(_) => Self::new(
                "builtins.FileNotFoundError",
                vec![Argument::Int(2), "No such file or directory".into()],
            ),
            AgentError::TimedOut(_) => {
                Self::new("concurrent.futures._base.TimeoutError", Vec::new())
            }
            AgentError::InvalidId(_) | AgentError::PathEscapes(_) => {
                Self::one("builtins.ValueError", error.to_string())
            }
            AgentError::Exists(_)
            | AgentError::PortsExhausted { .. }
            | AgentError::Runner { .. } => Self::one("builtins.RuntimeError", error.to_string()),
            AgentError::Host { .. } => Self::one("builtins.OSError", error.to_string()),
            AgentError::Runtime(error) => Self::from_runtime(error),
        }
    }

    /// The engine's errors take the place of Docker's, whose text form API users see.
    fn from_runtime(error: &RuntimeError) -> Self {
        let status = match error {
            RuntimeError::NotFound(_) | RuntimeError::ImageMissing(_) => 404,
            RuntimeError::Invalid(_) => 400,
            RuntimeError::Unavailable { .. } => 503,
            RuntimeError::Engine { .. } => 500,
        };
        Self {
            class: "aiodocker.exceptions.DockerError",
            args: Vec::new(),
            repr: Some(format!(
                "DockerError({status}, {})",
                python::quote(&chain(error))
            )),
        }
    }

    /// `repr()` of the exception.
    pub fn repr(&self) -> String {
        self.repr.clone().unwrap_or_else(|| {
            let name = self.class.rsplit('.').next().unwrap_or(self.class);
            let args: Vec<_> = self.args.iter().map(Argument::repr).collect();
            format!("{name}{}", python::tuple(&args))
        })
    }

    /// The body of the reply: type, arguments, text form.
    pub fn to_value(&self) -> Value {
        Value::Array(vec![
            self.class.into(),
            Value::Array(self.args.iter().map(Argument::value).collect()),
            self.repr().into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::request::KernelId;

    fn kernel() -> KernelId {
        KernelId::parse("k-1").expect("a good id")
    }

    #[test]
    fn text_forms_are_python_3_6() {
        assert_eq!(
            WireError::not_found("name").repr(),
            "NotFoundError('name',)"
        );
        let unknown = AgentError::UnknownKernel(kernel());
        assert_eq!(
            WireError::from_agent(&unknown, false).repr(),
            "KeyError('k-1',)"
        );
        let gone = WireError::from_agent(&AgentError::NoScratch(kernel()), false);
        assert_eq!(
            gone.repr(),
            "FileNotFoundError(2, 'No such file or directory')"
        );
        let late = WireError::from_agent(&AgentError::TimedOut("x".into()), false);
        assert_eq!(late.repr(), "TimeoutError()");
    }

    #[test]
    fn execute_of_an_unknown_kernel_is_a_runtime_error() {
        let error = WireError::from_agent(&AgentError::UnknownKernel(kernel()), true);
        assert_eq!(error.class, "builtins.RuntimeError");
        assert!(error.repr().contains("k-1"));
    }

    #[test]
    fn the_engines_errors_look_like_dockers() {
        let missing = RuntimeError::ImageMissing("r/i:t".to_owned());
        let error = WireError::from_agent(&AgentError::Runtime(missing), false);
        assert_eq!(error.class, "aiodocker.exceptions.DockerError");
        assert!(error.args.is_empty());
        assert_eq!(
            error.repr(),
            "DockerError(404, 'image r/i:t is not present; pull or import it first')"
        );
    }

    #[test]
    fn insufficient_resources_are_byte_exact() {
        let error = AgentError::InsufficientResource {
            map: "DiscretePropertyAllocMap",
            device: "cpu".into(),
            slot: "cpu".into(),
            requested: "4".into(),
            available: "2".into(),
        };
        let value = WireError::from_agent(&error, false).to_value();
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, &value).expect("a Vec takes all");
        let mut expected = b"\x93\xd9\x2fai.backend.agent.exception.InsufficientResource".to_vec();
        expected.extend(b"\x95\xd9\x3aDiscretePropertyAllocMap: insufficient allocatable amount!");
        expected.extend(b"\xa3cpu\xa3cpu\xa14\xa12\xd9\x6a");
        expected.extend(b"InsufficientResource('DiscretePropertyAllocMap: insufficient ");
        expected.extend(b"allocatable amount!', 'cpu', 'cpu', '4', '2')");
        assert_eq!(body, expected);
    }
}
