"""What the cases share: their registry, the running stack with a client's session, and the few things that many of them do."""
import contextlib
import json
import os
import secrets
import signal

from ai.backend.client.config import APIConfig
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import Session

import stack

CASES = []



def case(function):
    """Registers a case; cases run in the order of their files, each under a time limit."""
    CASES.append(function)
    return function


def on(*engines):
    """A case of some engines only."""
    def mark(function):
        function.engines = engines
        return function
    return mark


def check(condition, message, *values):
    """AssertionError with the message and what was seen; unlike `assert` it works without source lines."""
    if not condition:
        raise AssertionError(message.format(*values))


class Console:
    """What one run of `execute` gave, over all its continuations."""

    def __init__(self):
        self.stdout, self.stderr, self.statuses, self.exit_code = '', '', [], None

    def add(self, result):
        self.statuses.append(result['status'])
        for kind, text in result['console'] or []:
            if kind == 'stdout':
                self.stdout += text
            elif kind == 'stderr':
                self.stderr += text
        if result['status'] == 'finished':
            self.exit_code = result['exitCode']

    def __repr__(self):
        return 'stdout {!r}, stderr {!r}, exit code {}, statuses {}'.format(
            self.stdout, self.stderr, self.exit_code, self.statuses)


class TooLong(AssertionError):
    """The case ran past its time limit."""


class World:
    """The running stack and the client's session, with the few things that many cases do."""

    def __init__(self, running, images):
        self.stack, self.engine, self.images, self.client, self.patience = running, running.engine, images, None, 40

    def new_client(self):
        """A fresh client session: after an interrupted call the old one would answer with that call's result."""
        self.client = self.other_client()

    def other_client(self):
        """A client session that another thread may use, and must close."""
        return Session(config=APIConfig(
            endpoint=self.stack.api_url, access_key=stack.ACCESS_KEY, secret_key=stack.SECRET_KEY))

    @contextlib.contextmanager
    def session(self, image='python', **options):
        """A compute session, destroyed at the end whatever happens."""
        kernel = self.client.Kernel.get_or_create(image, **options)
        try:
            yield kernel
        except TooLong:
            self.new_client()
            kernel = self.client.Kernel(kernel.kernel_id)
            raise
        finally:
            with contextlib.suppress(BackendAPIError):
                self.client.Kernel(kernel.kernel_id).destroy()
            self.wait_terminated(kernel)

    def execute(self, kernel, code='', mode='query', opts=None, inputs=(), on_continued=None):
        """Runs code to its end the way the client's command line does."""
        console, inputs, run_id = Console(), list(inputs), secrets.token_hex(8)
        for _ in range(100):
            result = kernel.execute(run_id, code, mode, opts)
            console.add(result)
            run_id, status = result['runId'], result['status']
            if status == 'finished':
                return console
            if status == 'waiting-input':
                mode, code = 'input', inputs.pop(0)
            else:
                check(status in ('continued', 'build-finished', 'clean-finished'), 'unknown status {}', status)
                mode, code = 'continue', ''
                if status == 'continued' and on_continued:
                    on_continued()
            opts = None
        raise AssertionError('the run does not end: {!r}'.format(console))

    def row(self, kernel):
        """(kernel id, status) of the newest session of that name, from the manager's database."""
        answer = self.stack.sql(
            "select id, status from kernels where sess_id = '{}' order by created_at desc limit 1".format(kernel.kernel_id))
        return tuple(answer.split('|'))

    def wait_terminated(self, kernel, seconds=20):
        stack.wait_for('session is TERMINATED', seconds, lambda: self.row(kernel)[1] == 'TERMINATED')

    def occupied(self):
        """The slots the manager counts as taken: {'cpu': float, 'mem': float}."""
        text = self.stack.sql('select occupied_slots from agents') or '{}'
        return {name: float(amount) for name, amount in json.loads(text).items()}

    def wait_slots_free(self):
        stack.wait_for('no slots are occupied', 20, lambda: not any(self.occupied().values()))

    def agent_status(self):
        return self.stack.sql('select status from agents')

    def wait_alive(self):
        """Waits long for an agent, but not again and again for one that did not come."""
        seconds, self.patience = self.patience, 2
        stack.wait_for('the manager shows the agent ALIVE, or it has ended', seconds,
                       lambda: self.agent_status() == 'ALIVE' or not self.stack.agent.alive())
        check(self.stack.agent.alive(), 'the agent has ended with status {}', self.stack.agent.child.returncode)
        self.patience = 40

    def restart_agent(self, number):
        """Ends the agent by a signal and starts it again. Waits until the manager has heard from the new one."""
        ended = self.stack.stop_agent(number)
        check(ended, 'the agent did not end within 30 s of signal {}', number)
        self.forget_heartbeats()
        self.stack.start_agent()
        self.wait_heard()

    def last_seen(self):
        """When the manager last heard from the agent; an empty text after `forget_heartbeats` until it does again."""
        return self.stack.redis('hget', 'last_seen', self.stack.sql('select id from agents'), db=2)

    def forget_heartbeats(self):
        self.stack.redis('hdel', 'last_seen', self.stack.sql('select id from agents'), db=2)

    def wait_heard(self):
        stack.wait_for('a heartbeat of the new agent', 40, self.last_seen)
        self.wait_alive()

    def init_process(self, kernel):
        """The pid of the container's init on this machine: the process whose mounts name the kernel's scratch folder."""
        kernel_id = self.row(kernel)[0]
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            with contextlib.suppress(OSError):
                with open('/proc/{}/mountinfo'.format(pid)) as stream:
                    inside = any(kernel_id in line and ' /home/work ' in line for line in stream)
                with open('/proc/{}/status'.format(pid)) as stream:
                    ids = [line.split()[1:] for line in stream if line.startswith('NSpid:')][0]
                if inside and len(ids) > 1 and ids[-1] == '1':
                    found.append(int(pid))
        check(len(found) == 1, 'kernel {} has {} init processes', kernel_id, len(found))
        return found[0]


def write(folder, name, content):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as stream:
        stream.write(content)
    return path


def refused(action, *statuses):
    try:
        action()
    except BackendAPIError as error:
        check(error.status in statuses, 'status {}: {}', error.status, error.data)
        return error
    raise AssertionError('the request was not refused')
