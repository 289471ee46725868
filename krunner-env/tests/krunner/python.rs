//! Query mode at the plain level.

use crate::support::plain_python;

#[test]
fn output_streams_and_a_value_without_newline() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    let run = agent.query("print('hello'); import sys; print('err', file=sys.stderr); 1+1");
    assert_eq!((run.out(), run.err(), run.code()), ("hello\n2", "err\n", 0));
}
