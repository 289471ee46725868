//! Names of what the event loop watches, as epoll carries them: a number of 64 bits.

/// One of the two output pipes of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// What is watched. The numbers tell successors apart, so that a late event of a closed one meets nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Signals.
    Signals,
    /// New connections for ops.
    OpsListener,
    /// New connections for records.
    RecordsListener,
    /// A connection for ops.
    Ops(u32),
    /// A connection for records.
    Records(u32),
    /// A pipe of the batch command.
    Batch(Stream, u32),
    /// A pipe of the interpreter.
    Interpreter(Stream, u32),
    /// The interpreter's frames.
    Frames(u32),
    /// Room in the pipe to the interpreter.
    Control(u32),
    /// A program wants to ask for input, over TCP.
    InputTcp,
    /// A program wants to ask for input, over the Unix socket.
    InputUnix,
    /// A program that waits for input.
    InputClient(u32),
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        let (kind, number): (Self, u32) = match token {
            Token::Signals => (0, 0),
            Token::OpsListener => (1, 0),
            Token::RecordsListener => (2, 0),
            Token::Ops(number) => (3, number),
            Token::Records(number) => (4, number),
            Token::Batch(Stream::Stdout, number) => (5, number),
            Token::Batch(Stream::Stderr, number) => (6, number),
            Token::Interpreter(Stream::Stdout, number) => (7, number),
            Token::Interpreter(Stream::Stderr, number) => (8, number),
            Token::Frames(number) => (9, number),
            Token::Control(number) => (10, number),
            Token::InputTcp => (11, 0),
            Token::InputUnix => (12, 0),
            Token::InputClient(number) => (13, number),
        };
        (kind << 32) | Self::from(number)
    }
}

impl Token {
    /// The token of a number that came back from epoll.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let number = u32::try_from(bits & u64::from(u32::MAX)).expect("masked to 32 bits");
        Some(match bits >> 32 {
            0 => Self::Signals,
            1 => Self::OpsListener,
            2 => Self::RecordsListener,
            3 => Self::Ops(number),
            4 => Self::Records(number),
            5 => Self::Batch(Stream::Stdout, number),
            6 => Self::Batch(Stream::Stderr, number),
            7 => Self::Interpreter(Stream::Stdout, number),
            8 => Self::Interpreter(Stream::Stderr, number),
            9 => Self::Frames(number),
            10 => Self::Control(number),
            11 => Self::InputTcp,
            12 => Self::InputUnix,
            13 => Self::InputClient(number),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_epoll() {
        let all = [
            Token::Signals,
            Token::OpsListener,
            Token::RecordsListener,
            Token::Ops(1),
            Token::Records(u32::MAX),
            Token::Batch(Stream::Stdout, 3),
            Token::Batch(Stream::Stderr, 3),
            Token::Interpreter(Stream::Stdout, 4),
            Token::Interpreter(Stream::Stderr, 4),
            Token::Frames(5),
            Token::Control(6),
            Token::InputTcp,
            Token::InputUnix,
            Token::InputClient(7),
        ];
        assert!(
            all.into_iter()
                .all(|token| Token::from_bits(token.into()) == Some(token))
        );
        assert_eq!(Token::from_bits(u64::MAX), None);
    }
}
