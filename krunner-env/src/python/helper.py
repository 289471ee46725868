"""The query-mode interpreter of krunner: runs inside the image's own Python and needs its standard library only.

Works under CPython 2.7 and 3.5 upwards. Frames on two pipes, each a length (4 bytes, big endian) that counts the rest,
one letter, and the body; from krunner: C code, I input, K complete (the line up to the cursor);
to krunner: R ready, s user code starts, o stdout, e stderr, w waiting for input ("1": a password), m media (mime, NUL, data),
h html, c completion (lines), f finished (exit code).
Level "plain" is all here. Level "ipython" is an InteractiveShell in this process, when the image has IPython.
"""
import errno
import fcntl
import io
import os
import re
import select
import signal
import struct
import sys
import threading
import time

PY2 = sys.version_info[0] == 2
if PY2:
    import __builtin__ as builtins
    text_type = unicode  # noqa: F821
else:
    import builtins
    text_type = str

CHUNK = 64 << 10
BUFFER = 16 << 10
MAIN_PID = os.getpid()
if PY2:
    from thread import get_ident
else:
    from threading import get_ident
MAIN_THREAD = get_ident()
# What buffered output stands on: flushing before a fork and before a child process starts.
CAN_BUFFER = sys.version_info >= (3, 8)
FLUSH_SECONDS = 0.02
CODE_NAME = '<input-%d>'


def move_fd(fd):
    """Away from the numbers that user code closes or reuses, and closed in every program it starts."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD, 900)
    fcntl.fcntl(moved, fcntl.F_SETFD, fcntl.fcntl(moved, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)
    os.close(fd)
    return moved


class Interrupts(object):
    """SIGINT raises KeyboardInterrupt only in user code, and never between two halves of a frame."""

    def __init__(self):
        self.running = False
        self.held = False
        self.pending = False
        signal.signal(signal.SIGINT, self.handle)
        self.expect_nudges()

    def expect_nudges(self):
        """A signal that comes just before the main thread goes to sleep in C code does not wake it. krunner sends this one
        after an interrupt: it ends the system call, and Python then notices the interrupt too."""
        signal.signal(signal.SIGURG, lambda _number, _frame: None)

    def handle(self, _number, _frame):
        if PY2:
            # The interrupt is noticed. What more nudges end would be an IOError for user code.
            signal.signal(signal.SIGURG, signal.SIG_IGN)
        if os.getpid() == MAIN_PID:
            if not self.running:
                return
            if self.held:
                self.pending = True
                return
        raise KeyboardInterrupt

    def check(self):
        """Raises what was held back."""
        if self.pending and not self.held:
            self.pending = False
            if self.running:
                raise KeyboardInterrupt


class Channel(object):
    """The two pipes."""

    def __init__(self, interrupts):
        try:
            self.control, self.records = move_fd(3), move_fd(4)
        except (OSError, IOError):
            self.control, self.records = 3, 4
        flags = fcntl.fcntl(self.records, fcntl.F_GETFL)
        fcntl.fcntl(self.records, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        self.interrupts = interrupts
        self.lock = threading.RLock()
        self.unsent = b''
        self.received = b''
        self.before_others = None
        self.accepted = False

    def send(self, kind, body):
        """Writes one frame. An interrupt while the pipe is full leaves the rest for the next call, so that no frame is cut."""
        if kind != b'o' and self.before_others is not None:
            self.before_others()
        frame = memoryview(struct.pack('>I', len(body) + 1) + kind + body)
        self.accepted = False
        if get_ident() != MAIN_THREAD:
            with self.lock:
                self.put(frame, False)
            return
        before = self.interrupts.held
        self.interrupts.held = True
        try:
            with self.lock:
                self.put(frame, True)
        finally:
            self.interrupts.held = before
        self.interrupts.check()

    def put(self, frame, main):
        self.flush(main)
        self.unsent = frame
        self.accepted = main
        self.flush(main)

    def flush(self, main):
        while self.unsent:
            try:
                self.unsent = self.unsent[os.write(self.records, self.unsent):]
                continue
            except (OSError, IOError) as error:
                if error.errno == errno.EPIPE:
                    os._exit(0)
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
            # The pipe is full. Everything is in order here, so that an interrupt may come.
            if main:
                self.interrupts.held = False
                self.interrupts.check()
            try:
                select.select([], [self.records], [])
            except (OSError, IOError, select.error):
                pass
            if main:
                self.interrupts.held = True

    def receive(self):
        """The next frame: letter and body. What an interrupt cuts off is kept for the next call."""
        while True:
            if len(self.received) >= 4:
                size = struct.unpack('>I', self.received[:4])[0]
                if len(self.received) >= 4 + size:
                    frame = self.received[4:4 + size]
                    self.received = self.received[4 + size:]
                    return frame[:1], frame[1:]
            try:
                data = os.read(self.control, CHUNK)
            except (OSError, IOError) as error:
                if error.errno == errno.EINTR:
                    continue
                raise
            if not data:
                os._exit(0)
            self.received += data


def to_bytes(text):
    if isinstance(text, text_type):
        try:
            return text.encode('utf-8')
        except UnicodeError:
            return text.encode('utf-8', 'backslashreplace')
    return bytes(text)


class OutputBuffer(object):
    """sys.stdout.buffer and sys.stderr.buffer."""

    def __init__(self, output):
        self.output = output

    def write(self, data):
        data = bytes(data)
        self.output.send(data)
        return len(data)

    def flush(self):
        pass

    def fileno(self):
        return self.output.fileno()

    def writable(self):
        return True


class Output(object):
    """sys.stdout and sys.stderr: every write is a frame at once, in the order of both streams."""

    encoding = 'utf-8'
    errors = 'backslashreplace'
    newlines = None
    closed = False
    line_buffering = True
    softspace = 0
    mode = 'w'

    def __init__(self, channel, kind, fd):
        self.channel, self.kind, self.fd = channel, kind, fd
        self.name = '<stdout>' if fd == 1 else '<stderr>'
        self.buffer = OutputBuffer(self)

    def send(self, data):
        if os.getpid() != MAIN_PID:
            # A forked worker: its pipe of frames is ours, so it writes where all child processes do.
            while data:
                data = data[os.write(self.fd, data):]
            return
        for start in range(0, len(data), CHUNK):
            self.channel.send(self.kind, data[start:start + CHUNK])

    def write(self, text):
        if not isinstance(text, text_type) and not (PY2 and isinstance(text, str)):
            raise TypeError('write() argument must be str, not %s' % type(text).__name__)
        self.send(to_bytes(text))
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        pass

    def fileno(self):
        return self.fd

    def isatty(self):
        return False

    def readable(self):
        return False

    def writable(self):
        return True

    def seekable(self):
        return False

    def reconfigure(self, **_options):
        pass


class Frames(io.RawIOBase):
    """What a buffered sys.stdout writes to."""

    mode = 'w'

    def __init__(self, output):
        io.RawIOBase.__init__(self)
        self.output = output
        self.name = output.name
        self.writes = 0
        self.repeated = b''

    def write(self, data):
        repeated, self.repeated = self.repeated, b''
        if repeated and data[:len(repeated)] == repeated:
            return len(repeated)
        data = bytes(data[:CHUNK])
        self.writes += 1
        try:
            self.output.send(data)
            return len(data)
        except KeyboardInterrupt:
            # The buffer above keeps what it has not seen written; it will come again.
            if self.output.channel.accepted and len(data) <= BUFFER:
                self.repeated = data
            raise

    def fileno(self):
        return self.output.fd

    def writable(self):
        return True


class Buffer(io.BufferedWriter):
    """sys.stdout.buffer; user code cannot close it, not even by dropping a wrapper of its own."""

    def close(self):
        self.flush()


class Text(io.TextIOWrapper):
    """sys.stdout; likewise."""

    def close(self):
        self.flush()

    def detach(self):
        raise io.UnsupportedOperation('detach')


class BufferedOutput(object):
    """A sys.stdout that sends each line at once, but joins the lines of a flood. What it holds is sent before anything else
    is said, before a fork and before a child process, and while code runs every few milliseconds from a thread of its own."""

    # Lines in one tick that make a flood.
    MANY = 40

    def __init__(self, output):
        self.frames = Frames(output)
        self.stream = Text(Buffer(self.frames, BUFFER), 'utf-8', 'backslashreplace', '\n', line_buffering=True)
        self.flush = self.stream.flush
        self.lock = threading.Lock()
        self.active = threading.Event()
        os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork_here, after_in_child=self.after_fork)
        sys.addaudithook(self.audit)
        import _thread
        _thread.start_new_thread(self.flush_often, (time.sleep,))

    def run(self):
        self.active.set()

    def idle(self):
        """Between runs threads of the user may still write lines; nobody wakes up for them."""
        self.active.clear()
        self.stream.reconfigure(line_buffering=True)

    def flush_often(self, sleep):
        while True:
            self.active.wait()
            sleep(FLUSH_SECONDS)
            with self.lock:
                try:
                    self.flush()
                    writes, self.frames.writes = self.frames.writes, 0
                    if self.stream.line_buffering:
                        if writes > self.MANY and self.active.is_set():
                            self.stream.reconfigure(line_buffering=False)
                    elif writes <= 1:
                        self.stream.reconfigure(line_buffering=True)
                except Exception:
                    pass

    def before_fork(self):
        self.lock.acquire()
        self.flush()

    def after_fork_here(self):
        self.lock.release()

    def after_fork(self):
        self.lock = threading.Lock()
        self.stream.reconfigure(line_buffering=True)

    def audit(self, event, _arguments):
        if event in ('subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec') and os.getpid() == MAIN_PID:
            self.flush()


class Input(object):
    """sys.stdin: each line is asked from the session's user."""

    encoding = 'utf-8'
    errors = 'strict'
    closed = False
    name = '<stdin>'
    mode = 'r'

    def __init__(self, session):
        self.session = session

    def readline(self, _size=-1):
        return self.session.ask('', False) + '\n'

    def read(self, _size=-1):
        return self.readline()

    def readlines(self, _hint=-1):
        return [self.readline()]

    def __iter__(self):
        return self

    def __next__(self):
        return self.readline()

    next = __next__

    def fileno(self):
        return 0

    def isatty(self):
        return False

    def readable(self):
        return True

    def writable(self):
        return False

    def flush(self):
        pass


def exit_code(error):
    """The exit status that Python itself would give for a SystemExit."""
    code = getattr(error, 'code', None)
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


class Session(object):
    """What both levels share: the channel, input, display, completion."""

    def __init__(self, channel):
        self.channel = channel
        self.interrupts = channel.interrupts
        self.stdout = Output(self.channel, b'o', 1)
        self.stderr = Output(self.channel, b'e', 2)
        self.buffered = None
        if CAN_BUFFER:
            self.buffered = BufferedOutput(self.stdout)
            self.stdout = self.buffered.stream
            self.channel.before_others = self.buffered.flush
        sys.stdout = sys.__stdout__ = self.stdout
        sys.stderr = sys.__stderr__ = self.stderr
        sys.stdin = Input(self)
        import types
        self.module = types.ModuleType('__main__')
        self.module.__builtins__ = builtins
        sys.modules['__main__'] = self.module
        self.namespace = self.module.__dict__
        self.patch_input()

    def ask(self, prompt, is_password):
        if prompt:
            self.stdout.write(prompt if isinstance(prompt, (str, text_type)) else str(prompt))
        self.channel.send(b'w', b'1' if is_password else b'0')
        while True:
            kind, body = self.channel.receive()
            if kind == b'I':
                return body if PY2 else body.decode('utf-8', 'replace')

    def patch_input(self):
        import getpass

        def ask(prompt=''):
            """Asks the session's user for a line."""
            return self.ask(prompt, False)

        def ask_password(prompt='Password: ', stream=None, **_options):
            """Asks the session's user for a line that is not shown."""
            return self.ask(prompt, True)

        getpass.getpass = ask_password
        if PY2:
            builtins.raw_input = ask
            builtins.input = lambda prompt='': eval(ask(prompt), self.namespace)
        else:
            builtins.input = ask

    def display(self, bundle):
        """Shows one value: without text/plain if there is something better, and that as the client knows it."""
        for mime in [mime for mime in bundle if mime != 'text/plain'] + ['text/plain']:
            data = bundle.get(mime)
            if data is None:
                continue
            if mime == 'text/plain':
                self.stdout.write(data)
            elif mime == 'text/html':
                self.channel.send(b'h', to_bytes(data))
            elif mime in ('image/png', 'image/jpeg'):
                import binascii
                if not isinstance(data, text_type):
                    data = binascii.b2a_base64(data).decode('ascii')
                self.channel.send(b'm', to_bytes(mime + '\0data:' + mime + ';base64,' + data.rstrip('\n') + '\n'))
            elif mime == 'image/svg+xml':
                self.channel.send(b'm', to_bytes(mime) + b'\0' + to_bytes(data))
            else:
                continue
            return

    def guarded(self, run, code):
        """Runs user code; an interrupt may come until the very end."""
        interrupts = self.interrupts
        try:
            try:
                interrupts.pending, interrupts.held, interrupts.running = False, True, True
                if PY2:
                    interrupts.expect_nudges()
                self.channel.send(b's', b'')
                if self.buffered:
                    self.buffered.run()
                interrupts.held = False
                interrupts.check()
                result = run(code)
            finally:
                interrupts.running = False
        except KeyboardInterrupt:
            interrupts.running = False
            self.stderr.write('KeyboardInterrupt\n')
            result = 1
        interrupts.held = False
        if self.buffered:
            self.buffered.idle()
        return result

    def serve(self):
        while True:
            kind, body = self.channel.receive()
            if kind == b'C':
                code = self.guarded(self.run, body.decode('utf-8', 'replace'))
                self.channel.send(b'f', str(code).encode('ascii'))
            elif kind == b'K':
                try:
                    found = self.complete(body.decode('utf-8', 'replace'))
                except Exception:
                    found = []
                self.channel.send(b'c', b'\n'.join(to_bytes(item) for item in found if '\n' not in item))


class PlainSession(Session):
    """Level (a): the standard library."""

    def __init__(self, channel):
        Session.__init__(self, channel)
        self.count = 0
        self.flags = 0

    def compile(self, source, mode):
        code = compile(source, CODE_NAME % self.count, mode, self.flags, True)
        import __future__
        for name in __future__.all_feature_names:
            self.flags |= code.co_flags & getattr(__future__, name).compiler_flag
        return code

    def run(self, text):
        import ast
        import linecache
        self.count += 1
        name = CODE_NAME % self.count
        lines = [line + '\n' for line in text.split('\n')]
        linecache.cache[name] = (len(text), None, lines, name)
        try:
            # Python 2 takes an encoding line only in bytes.
            source = text.encode('utf-8') if PY2 and re.match(r'[ \t\f]*#.*?coding[:=]', text) else text
            tree = compile(source, name, 'exec', self.flags | ast.PyCF_ONLY_AST, True)
            last = None
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = tree.body.pop()
            if tree.body:
                exec(self.compile(tree, 'exec'), self.namespace)
            if last is not None:
                self.show(eval(self.compile(ast.Expression(last.value), 'eval'), self.namespace))
            self.show_figures()
            return 0
        except SystemExit as error:
            code = exit_code(error)
            if code == 1 and not isinstance(error.code, int):
                self.stderr.write('%s\n' % (error.code,))
            return code
        except BaseException:
            self.show_error()
            return 1

    def show(self, value):
        if value is None:
            return
        builtins._ = value
        bundle = {}
        if not isinstance(value, type):
            for method, mime in (('_repr_html_', 'text/html'), ('_repr_svg_', 'image/svg+xml'),
                                 ('_repr_png_', 'image/png'), ('_repr_jpeg_', 'image/jpeg')):
                maker = getattr(value, method, None)
                data = maker() if callable(maker) else None
                if data is not None:
                    bundle[mime] = data
                    break
        bundle['text/plain'] = repr(value)
        self.display(bundle)

    def show_figures(self):
        pyplot = sys.modules.get('matplotlib.pyplot')
        if pyplot is None or not pyplot.get_fignums():
            return
        import io
        for number in pyplot.get_fignums():
            image = io.BytesIO()
            pyplot.figure(number).savefig(image, format='png')
            self.display({'image/png': image.getvalue()})
        pyplot.close('all')

    def show_error(self):
        import traceback
        kind, error, trace = sys.exc_info()
        # The frames above the user's own are ours.
        first = trace
        while first is not None and not first.tb_frame.f_code.co_filename.startswith('<input-'):
            first = first.tb_next
        lines = traceback.format_exception(kind, error, first)
        self.stderr.write(''.join(line if isinstance(line, text_type) else line.decode('utf-8', 'replace')
                                  for line in lines))

    def complete(self, line):
        try:
            import jedi
        except ImportError:
            jedi = None
        if jedi is not None:
            prefix = re.search(r'[\w.]*$', line, re.UNICODE).group(0).rpartition('.')
            found = jedi.Interpreter(line, [self.namespace]).complete()
            return [prefix[0] + prefix[1] + item.name for item in found][:200]
        import rlcompleter
        prefix = re.search(r'[\w.]*$', line, re.UNICODE).group(0)
        if not prefix:
            return []
        completer = rlcompleter.Completer(self.namespace)
        found = []
        while len(found) < 200:
            item = completer.complete(prefix, len(found))
            if item is None:
                break
            found.append(item)
        return [item.strip() for item in found]


def ipython_session(channel):
    """Level (b): an InteractiveShell in this process. Raises what the image's IPython raises."""
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    session = Session(channel)

    class Hook(DisplayHook):
        """Values of expressions: no prompt, no newline."""

        def start_displayhook(self):
            pass

        def write_output_prompt(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            session.display(format_dict)

        def finish_displayhook(self):
            pass

    class Publisher(DisplayPublisher):
        """display(), and the figures of matplotlib's inline backend."""

        def publish(self, data, metadata=None, *_args, **_options):
            # IPython 4 has the source before the data.
            session.display(data if isinstance(data, dict) else metadata)

        def clear_output(self, wait=False):
            pass

    class Shell(InteractiveShell):
        displayhook_class = Hook
        display_pub_class = Publisher

        def init_io(self):
            pass

        def ask_exit(self):
            raise SystemExit(0)

        def _showtraceback(self, etype, evalue, stb):
            session.stderr.write('\n'.join(stb if isinstance(stb, list) else [stb]))

        def enable_gui(self, gui=None):
            pass

    config = Config()
    config.HistoryManager.enabled = False
    # With jedi the lists that complete() gives are empty.
    config.Completer.use_jedi = False
    backend = inline_backend()
    if backend:
        os.environ['MPLBACKEND'] = backend
    shell = Shell.instance(config=config, user_module=session.module, user_ns=session.namespace)

    def run(text):
        try:
            result = shell.run_cell(text, store_history=True)
        except SystemExit as error:
            return exit_code(error)
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            return 0
        return exit_code(error) if isinstance(error, SystemExit) else 1

    session.run = run
    session.complete = lambda line: list(shell.complete(None, line, len(line))[1])[:200]
    return session


def importable(name):
    """Whether the image has this module, without importing it."""
    try:
        from importlib.util import find_spec
    except ImportError:
        from pkgutil import find_loader as find_spec
    try:
        return find_spec(name) is not None
    except Exception:
        return False


def inline_backend():
    """The name of the matplotlib back-end that shows figures, if the image has it."""
    if importable('matplotlib'):
        for module in ('matplotlib_inline', 'ipykernel.pylab'):
            if importable(module):
                return 'module://%s.backend_inline' % module
    return None


def open_session(channel):
    level = os.environ.get('BACKENDAI_PYTHON_LEVEL', '')
    if level != 'plain' and importable('IPython'):
        try:
            return ipython_session(channel)
        except Exception as error:
            sys.stderr.write('krunner: IPython does not start (%s), going on without it\n' % (error,))
    if importable('matplotlib'):
        os.environ.setdefault('MPLBACKEND', 'Agg')
    return PlainSession(channel)


def main():
    interrupts = Interrupts()
    channel = Channel(interrupts)
    channel.send(b'R', b'')
    open_session(channel).serve()


main()
