"""User input for batch programs: found through PYTHONPATH by every Python that a batch command starts, active only under krunner.

The next sitecustomize on the path, which this file hides, is imported too.
"""
import os
import sys


def _install():
    try:
        import builtins
        name = 'input'
    except ImportError:
        import __builtin__ as builtins
        name = 'raw_input'

    def ask(prompt=''):
        """Asks the session's user for a line."""
        import socket
        sys.stdout.write(str(prompt))
        sys.stdout.flush()
        try:
            try:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                client.connect(os.environ['_BACKEND_INPUT_SOCKET'])
            except (OSError, IOError, KeyError):
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                client.connect(('127.0.0.1', int(os.environ.get('_BACKEND_INPUT_PORT', '65000'))))
            parts = []
            while True:
                data = client.recv(65536)
                if not data:
                    break
                parts.append(data)
            client.close()
        except (OSError, IOError):
            return '<user-input-unavailable>'
        text = b''.join(parts)
        return text if str is bytes else text.decode('utf-8', 'replace')

    setattr(builtins, name, ask)


def _next():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    own = sys.modules.pop('sitecustomize', None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        # Python's importer wants to find the module it has just run.
        if own is not None:
            sys.modules['sitecustomize'] = own


if os.environ.get('_BACKEND_BATCH_MODE') == '1':
    _install()
_next()
