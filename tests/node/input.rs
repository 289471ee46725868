//! Input from a pipe and from a terminal.

use crate::support::Node;

#[test]
fn code_that_asks_is_answered_from_the_standard_input() {
    let node = Node::python();
    let mut run = node.start(&["-c", "a = input('a? ')\nb = input('b? ')\nprint(a + b)"]);
    run.say("1\n2\n");
    let outcome = run.end();
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "a? b? 12\n"));
    node.assert_nothing_left();
}

#[test]
fn code_that_asks_when_the_input_is_over_ends() {
    let node = Node::python();
    let outcome = node.run(&["-c", "input('a? ')"]);
    assert_ne!(outcome.code, 0);
    assert!(outcome.err.contains("but there is none"), "{}", outcome.err);
    node.assert_nothing_left();
}

#[test]
fn a_command_that_asks_is_answered_from_the_standard_input() {
    let node = Node::python();
    let script = "python3 -c 'print(\"hello\", input(\"who? \"))'";
    let mut run = node.start(&["--exec", script]);
    run.say("world\n");
    let outcome = run.end();
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "who? hello world\n")
    );
    node.assert_nothing_left();
}

#[test]
fn code_that_asks_is_answered_from_the_terminal() {
    let node = Node::python();
    let mut run = node.start_on_terminal(&["-c", "print('hello', input('who? '))"]);
    run.until("who? ");
    run.type_in("world\n");
    // What is typed is shown by the terminal, then comes what the code says of it.
    assert_eq!(run.until("hello world"), "world\r\nhello world");
    assert_eq!(run.end().0, 0);
    node.assert_nothing_left();
}

#[test]
fn a_password_is_not_shown_while_it_is_typed() {
    let node = Node::python();
    let code = "import getpass\nword = getpass.getpass('word? ')\nprint(len(word))\nprint('hi', input('who? '))";
    let mut run = node.start_on_terminal(&["-c", code]);
    run.until("word? ");
    run.until_hidden();
    run.type_in("secret\n");
    let shown = run.until("who? ");
    assert!(
        !shown.contains("secret") && shown.contains('6'),
        "{shown:?}"
    );
    run.type_in("shown\n");
    assert_eq!(run.until("hi shown"), "shown\r\nhi shown");
    assert_eq!(run.end().0, 0);
    node.assert_nothing_left();
}
