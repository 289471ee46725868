"""The real scenario: the agent under an unmodified 19.03.3 manager, driven through the HTTP API with the client library of its time.

    scenario.py --manager-venv DIR --agent FILE --python-tar FILE --busybox-tar FILE --logs DIR [NAME...]

Prints one line for each case (`ok NAME` or `FAILED NAME`, reasons below it) and exits with 1 if any failed. With names, runs only
those. Python 3.6, in the client's environment, as root.
"""
import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback

from ai.backend.client.config import APIConfig
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import Session

import residue
import stack

CASES = []
CASE_SECONDS = 120


def case(function):
    """Registers a case; cases run in the order of this file, each under a time limit."""
    CASES.append(function)
    return function


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
        self.stack, self.images, self.client, self.patience = running, images, None, 40

    def new_client(self):
        """A fresh client session: after an interrupted call the old one would answer with that call's result."""
        self.client = Session(config=APIConfig(
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
        self.stack.redis('hdel', 'last_seen', self.stack.sql('select id from agents'), db=2)
        self.stack.start_agent()
        stack.wait_for('a heartbeat of the new agent', 40, lambda: self.stack.redis('hlen', 'last_seen', db=2) == '1')
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


# ---- the node as the manager sees it

@case
def the_manager_shows_the_agent_alive_with_its_slots(world):
    world.wait_alive()
    fields = ('id', 'status', 'addr', 'region', 'available_slots', 'occupied_slots')
    items = world.client.Agent.list_with_limit(10, 0, 'ALIVE', fields)['items']
    check(len(items) == 1, 'agents: {}', items)
    agent, slots = items[0], json.loads(items[0]['available_slots'])
    check(agent['id'] == 'i-' + os.uname().nodename, 'instance id: {}', agent['id'])
    check(agent['addr'] == 'tcp://127.0.0.1:{}'.format(world.stack.agent_port), 'address: {}', agent['addr'])
    check(float(slots['cpu']) == 2 * len(os.sched_getaffinity(0)), 'slots: {}', slots)  # 19.03: two shares a core
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    check(total * 0.5 < float(slots['mem']) <= total, 'memory slot {} of {}', slots['mem'], total)


@case
def a_session_of_an_image_from_the_registry_runs_code(world):
    with world.session() as kernel:
        check(kernel.created, 'the session was there before')
        console = world.execute(kernel, 'print("hello")')
        check(console.stdout == 'hello\n' and console.statuses[-1] == 'finished', '{!r}', console)
    world.wait_slots_free()


@case
def the_manager_knows_that_the_agent_has_the_image(world):
    name = world.images['python']
    agent = world.stack.sql('select id from agents')
    stack.wait_for('image {} is reported'.format(name), 90, lambda: world.stack.redis('sismember', name, agent, db=3) == '1')


# ---- query mode

@case
def the_state_of_the_interpreter_lives_between_queries(world):
    with world.session() as kernel:
        world.execute(kernel, 'import sys\nanswer = 42\ndef double(n):\n    return n * 2')
        console = world.execute(kernel, 'print(double(answer))')
        check(console.stdout == '84\n', '{!r}', console)


@case
def an_exception_is_shown_and_the_interpreter_goes_on(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'print("before")\n1 / 0\nprint("after")')
        check('before' in console.stdout and 'after' not in console.stdout, '{!r}', console)
        check('ZeroDivisionError' in console.stdout + console.stderr, '{!r}', console)
        check(world.execute(kernel, 'print("alive")').stdout == 'alive\n', 'the interpreter is gone')


@case
def standard_error_is_told_from_standard_output(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'import sys; print("out"); print("err", file=sys.stderr)')
        check(console.stdout == 'out\n' and console.stderr == 'err\n', '{!r}', console)


@case
def a_program_asks_for_input_and_gets_it(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'a = input("first? ")\nb = input("second? ")\nprint(a + "/" + b)', inputs=['one', 'zwei ü'])
        check(console.statuses.count('waiting-input') == 2, '{!r}', console)
        check('first? ' in console.stdout and 'one/zwei ü' in console.stdout, '{!r}', console)


@case
def a_long_run_gives_its_output_as_it_goes_and_then_finishes(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'import time\nfor i in range(5):\n    print("step", i)\n    time.sleep(1)')
        check('continued' in console.statuses, '{!r}', console)
        check(console.stdout == ''.join('step {}\n'.format(i) for i in range(5)), '{!r}', console)


@case
def an_interrupt_stops_a_running_program(world):
    with world.session() as kernel:
        pressed = []

        def press():
            if not pressed:
                pressed.append(kernel.interrupt())
        console = world.execute(kernel, 'import time\nwhile True:\n    time.sleep(0.1)', on_continued=press)
        check(pressed and 'KeyboardInterrupt' in console.stdout + console.stderr, '{!r}', console)
        check(world.execute(kernel, 'print("alive")').stdout == 'alive\n', 'the interpreter is gone')


@case
def a_large_output_arrives_whole(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'for i in range(20000):\n    print("line %06d of a long output" % i)')
        lines = console.stdout.splitlines()
        check(len(lines) == 20000 and lines[-1] == 'line 019999 of a long output', '{} lines, last {!r}', len(lines), lines[-1:])


# ---- batch mode and files

def write(folder, name, content):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as stream:
        stream.write(content)
    return path


@case
def batch_mode_builds_and_runs_uploaded_files(world):
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        main = write(folder, 'main.py', b'import helper, sys\nprint(helper.words()); sys.exit(int(open("status").read()))\n')
        helper = write(folder, 'helper.py', b'def words():\n    return "from the helper"\n')
        kernel.upload([main, helper], basedir=folder)
        console = world.execute(kernel, mode='batch', opts={
            'build': 'echo building; echo 0 > status', 'exec': 'python3 main.py'})
        check('from the helper\n' in console.stdout and console.exit_code == 0, '{!r}', console)
        check('build-finished' in console.statuses, '{!r}', console)


@case
def a_failing_batch_program_gives_its_exit_code(world):
    with world.session() as kernel:
        console = world.execute(kernel, mode='batch', opts={'exec': 'echo out; echo err >&2; exit 7'})
        check(console.exit_code == 7 and 'out\n' in console.stdout and 'err\n' in console.stderr, '{!r}', console)


@case
def files_go_up_are_listed_and_come_down(world):
    content = bytes(range(32, 127)) * 20
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        kernel.upload([write(folder, 'top.txt', b'top\n'), write(folder, 'a/b/data.txt', content)], basedir=folder)
        console = world.execute(kernel, 'import os\nprint(os.path.getsize("a/b/data.txt"), open("top.txt").read().strip())')
        check(console.stdout == '{} top\n'.format(len(content)), '{!r}', console)
        listing = json.loads(kernel.list_files('.')['files'])
        check({'top.txt', 'a'} <= {item['filename'] for item in listing}, 'listing: {}', listing)
        check([item['size'] for item in listing if item['filename'] == 'top.txt'] == [4], 'listing: {}', listing)
        world.execute(kernel, 'open("result.txt", "w").write("made inside\\n")')
        target = os.path.join(folder, 'down')
        os.mkdir(target)
        kernel.download(['result.txt'], dest=target)
        with open(os.path.join(target, 'result.txt')) as stream:
            check(stream.read() == 'made inside\n', 'the downloaded file differs')


@case
def an_upload_does_not_leave_the_work_folder(world):
    from ai.backend.client.request import AttachedFile
    import ai.backend.client.kernel as module
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        source = write(folder, 'evil', b'x')

        class Escaping(AttachedFile):
            def __new__(cls, name, stream, content_type):
                return AttachedFile.__new__(AttachedFile, '../../../escaped', stream, content_type)
        module.AttachedFile, original = Escaping, AttachedFile
        try:
            with contextlib.suppress(BackendAPIError):
                kernel.upload([source], basedir=folder)
        finally:
            module.AttachedFile = original
        scratch = world.stack.path('scratch')
        outside = [base for base, _, names in os.walk(world.stack.folder) if 'escaped' in names and '/work' not in base[len(scratch):]]
        check(not outside, 'the upload landed in {}', outside)


# ---- the session itself

@case
def what_batch_programs_print_is_in_the_logs(world):
    with world.session() as kernel:
        world.execute(kernel, mode='batch', opts={'exec': 'echo for the log; echo and an error >&2'})
        logs = kernel.get_logs()['result']['logs'].splitlines()
        check('for the log' in logs and 'and an error' in logs, 'logs: {!r}', logs)


@case
def a_restart_forgets_state_but_keeps_files(world):
    with world.session() as kernel:
        world.execute(kernel, 'kept = 1\nopen("kept.txt", "w").write("here")')
        before = world.row(kernel)[0]
        kernel.restart()
        check(world.row(kernel) == (before, 'RUNNING'), 'after the restart: {}', world.row(kernel))
        console = world.execute(kernel, 'print(open("kept.txt").read(), "kept" in globals())')
        check(console.stdout == 'here False\n', '{!r}', console)


@case
def limits_of_cpu_and_memory_hold_inside_the_container(world):
    with world.session(resources={'cpu': 1, 'mem': '384m'}) as kernel:
        check(world.occupied() == {'cpu': 1, 'mem': 384 << 20}, 'occupied: {}', world.occupied())
        check(world.execute(kernel, 'import os; print(len(os.sched_getaffinity(0)))').stdout == '1\n', 'more than one core')
        limit = residue.memory_limit(world.init_process(kernel))
        check(limit == 384 << 20, 'memory limit: {}', limit)
    world.wait_slots_free()


@case
def the_environment_given_at_creation_is_seen_inside(world):
    with world.session(envs={'GREETING': 'hello there'}) as kernel:
        console = world.execute(kernel, 'import os; print(os.environ["GREETING"], os.getcwd(), os.getuid())')
        check(console.stdout == 'hello there /home/work 1000\n', '{!r}', console)


@case
def a_virtual_folder_is_shared_with_the_node(world):
    world.client.VFolder.create('shared', 'local')
    folder = os.path.join(world.stack.path('vfroot', 'local'), os.listdir(world.stack.path('vfroot', 'local'))[0])
    os.chmod(folder, 0o777)
    write(folder, 'from-node', b'node')
    with world.session(mounts=['shared']) as kernel:
        console = world.execute(kernel, 'print(open("shared/from-node").read()); written = open("shared/from-kernel", "w").write("kernel")')
        check(console.stdout == 'node\n', '{!r}', console)
        with open(os.path.join(folder, 'from-kernel')) as stream:
            check(stream.read() == 'kernel', 'what the kernel wrote differs')


@case
def two_sessions_live_beside_each_other(world):
    with world.session() as first, world.session() as second:
        world.execute(first, 'who = "first"; open("mark", "w").write(who)')
        world.execute(second, 'import os; print("who" in globals(), os.path.exists("mark"))')
        console = world.execute(second, 'print("who" in globals(), os.path.exists("mark"))')
        check(console.stdout == 'False False\n', '{!r}', console)
        check(world.execute(first, 'print(who)').stdout == 'first\n', 'the first one lost its state')
        check(world.row(first)[0] != world.row(second)[0], 'the same kernel')
    world.wait_slots_free()


@case
def destroying_a_session_is_seen_by_the_manager_and_frees_its_slots(world):
    kernel = world.client.Kernel.get_or_create('python')
    check(world.occupied()['cpu'] == 1, 'occupied: {}', world.occupied())
    check('stats' in kernel.destroy(), 'the answer has no statistics')
    world.wait_terminated(kernel)
    world.wait_slots_free()
    used = world.stack.sql("select concurrency_used from keypairs where access_key = '{}'".format(stack.ACCESS_KEY))
    check(used == '0', 'sessions counted for the key: {}', used)


@case
def a_kernel_that_ends_by_itself_is_reported(world):
    with world.session() as kernel:
        os.kill(world.init_process(kernel), signal.SIGKILL)
        world.wait_terminated(kernel)
    world.wait_slots_free()


# ---- what cannot be done

def refused(action, *statuses):
    try:
        action()
    except BackendAPIError as error:
        check(error.status in statuses, 'status {}: {}', error.status, error.data)
        return error
    raise AssertionError('the request was not refused')


@case
def an_unknown_image_is_refused(world):
    refused(lambda: world.client.Kernel.get_or_create('no-such-image:1'), 400, 404)


@case
def too_many_resources_are_refused(world):
    world.wait_alive()
    refused(lambda: world.client.Kernel.get_or_create('python', resources={'cpu': 4096, 'mem': '512m'}), 400, 503)
    check(not any(world.occupied().values()), 'occupied: {}', world.occupied())


@case
def an_image_that_the_registry_lost_fails_the_create_and_leaves_nothing(world):
    before = residue.processes(world.stack)
    refused(lambda: world.client.Kernel.get_or_create(world.images['lost'], client_token='lost-image'), 500)
    world.wait_slots_free()
    check(residue.processes(world.stack) == before, 'processes left: {}', residue.processes(world.stack))
    check(os.listdir(world.stack.path('scratch')) == [], 'scratch left: {}', os.listdir(world.stack.path('scratch')))


# ---- failures of the manager and of the agent

@case
def kernels_and_events_outlive_the_managers_death(world):
    with world.session() as living, world.session() as dying:
        world.execute(living, 'x = 41')
        init = world.init_process(dying)
        world.stack.kill_manager()
        os.kill(init, signal.SIGKILL)
        time.sleep(5)  # more than one heartbeat into the void
        check(world.stack.agent.alive(), 'the agent ended')
        world.stack.start_manager()
        world.wait_alive()
        world.wait_terminated(dying)
        # The old client may hold a connection to the dead manager.
        world.new_client()
        living = world.client.Kernel(living.kernel_id)
        check(world.execute(living, 'print(x + 1)').stdout == '42\n', 'the living kernel lost its state')
    world.wait_slots_free()


def survives(world, number):
    with world.session() as kernel:
        world.execute(kernel, 'x = 41')
        before = world.row(kernel)[0]
        world.restart_agent(number)
        console = world.execute(kernel, 'print(x + 1)')
        check(console.stdout == '42\n' and world.row(kernel) == (before, 'RUNNING'), '{!r}; {}', console, world.row(kernel))
        kernel.destroy()
        world.wait_terminated(kernel)
    world.wait_slots_free()


@case
def kernels_survive_an_agent_that_is_stopped_and_started(world):
    survives(world, signal.SIGINT)


@case
def kernels_survive_an_agent_that_is_killed(world):
    survives(world, signal.SIGKILL)


@case
def a_kernel_that_ended_while_the_agent_was_away_is_reported(world):
    with world.session() as kernel:
        init = world.init_process(kernel)
        world.stack.stop_agent(signal.SIGKILL)
        os.kill(init, signal.SIGKILL)
        world.stack.start_agent()
        world.wait_terminated(kernel, 40)
        world.wait_alive()
    world.wait_slots_free()


@case
def a_terminated_agent_destroys_its_kernels(world):
    kernel = world.client.Kernel.get_or_create('python')
    check(world.stack.stop_agent(signal.SIGTERM), 'the agent did not end')
    check(world.stack.agent.child.returncode == 0, 'exit status {}', world.stack.agent.child.returncode)
    world.wait_terminated(kernel)
    world.wait_slots_free()
    stack.wait_for('the manager shows the agent TERMINATED', 20, lambda: world.agent_status() == 'TERMINATED')


@case
def nothing_is_left_on_the_machine(world):
    left = residue.wait_for_nothing(world.stack, 10)
    check(not left, 'left behind:\n  {}', '\n  '.join(left))


def run_case(world, function):
    """Runs one case under its time limit; returns the reason of a failure."""
    def too_long(_number, _frame):
        signal.alarm(60)  # for what the case does to clean up
        raise TooLong('longer than {} s'.format(CASE_SECONDS))
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(CASE_SECONDS)
    world.new_client()
    try:
        if function is not nothing_is_left_on_the_machine:
            world.wait_alive()
        function(world)
        return None
    except TooLong:
        world.new_client()
        return traceback.format_exc(limit=-3)
    except Exception:  # noqa: B902  (a case may fail in any way)
        return traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
        world.client.close()


def prepare(running, options):
    """Services, manager, images; returns the images' names."""
    running.start_services()
    running.fill()
    images = {}
    for name, tar in (('python', options.python_tar), ('busybox', options.busybox_tar)):
        with open(os.path.join(stack.REPOSITORY, 'images', name, 'image.json')) as stream:
            description = json.load(stream)
        images[name], _ = running.push(description, tar)
    lost = dict(description, name='lablup/lost')
    images['lost'], digest = running.push(lost, options.busybox_tar)
    running.manager_cli('etcd', 'rescan-images')
    running.manager_cli('etcd', 'alias', 'python', images['python'])
    stack.registry.forget(running.registry_url, lost['name'], digest)
    running.start_manager()
    return images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('manager-venv', 'agent', 'python-tar', 'busybox-tar', 'logs'):
        parser.add_argument('--' + name, required=True)
    parser.add_argument('names', nargs='*')
    options = parser.parse_args()
    unknown = set(options.names) - {function.__name__ for function in CASES}
    if unknown:
        parser.error('no such case: ' + ', '.join(sorted(unknown)))
    os.makedirs(options.logs, exist_ok=True)
    folder = tempfile.mkdtemp(prefix='bai-stack.')
    running = stack.Stack(folder, options.logs, options.manager_venv, options.agent)
    failed = 0
    try:
        images = prepare(running, options)
        running.start_agent()
        world = World(running, images)
        for function in CASES:
            if options.names and function.__name__ not in options.names:
                continue
            reason = run_case(world, function)
            print('{} {}'.format('FAILED' if reason else 'ok', function.__name__), flush=True)
            if reason:
                failed += 1
                print('    ' + reason.rstrip().replace('\n', '\n    '), flush=True)
                if not running.agent.alive() and function is not CASES[-2] and function is not CASES[-1]:
                    print('    the agent had ended; it is started again. Its last words:\n' + running.agent.tail(6), flush=True)
                    running.start_agent()
    finally:
        running.down()
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # the clients' threads need not be waited for


if __name__ == '__main__':
    main()
