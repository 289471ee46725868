"""The services of the real stack, the unmodified manager and the agent under test, as child processes on loopback.

Every port is a free one, every file is below one temporary folder. Children get SIGKILL when this program dies, except
the agent, whose kernels must be able to outlive it: this program is their subreaper, so it finds and ends whatever they leave.
"""
import ctypes
import glob
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import registry
import residue

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
ACCESS_KEY = 'AKIATESTADMIN0000000'
SECRET_KEY = 'admin-secret-of-the-tests-00000000000000'
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class StackError(Exception):
    """A part of the stack did not come up; the message names it and its log."""


def wait_for(what, seconds, probe, step=0.1):
    """Calls `probe` until it returns something true, and returns that; StackError after `seconds`."""
    end = time.monotonic() + seconds
    error = None
    while time.monotonic() < end:
        try:
            value = probe()
            if value:
                return value
        except Exception as caught:  # noqa: B902  (whatever a probe of a starting service raises)
            error = caught
        time.sleep(step)
    raise StackError('{} within {} s{}'.format(what, seconds, ': {!r}'.format(error) if error else ''))


def free_ports(count):
    """Ports that are free now on 127.0.0.1, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(('127.0.0.1', 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def free_range(length):
    """The first of `length` consecutive ports that are free now."""
    for _ in range(50):
        first = random.randrange(20000, 30000 - length)
        held = []
        try:
            for port in range(first, first + length):
                item = socket.socket()
                held.append(item)
                item.bind(('127.0.0.1', port))
            return first
        except OSError:
            continue
        finally:
            for item in held:
                item.close()
    raise StackError('no {} consecutive free ports found'.format(length))


class Process:
    """A child with its log. `group` gives it a process group of its own, so that signals reach its workers too."""

    def __init__(self, name, argv, log, env=None, user=None, die_with_us=True):
        self.name, self.log = name, log
        uid = pwd.getpwnam(user) if user else None

        def before_exec():
            os.setpgid(0, 0)
            if uid:
                os.setgroups([])
                os.setgid(uid.pw_gid)
                os.setuid(uid.pw_uid)
            if die_with_us:
                _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with open(log, 'ab') as stream:
            self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env,
                                          preexec_fn=before_exec, cwd='/')

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child.poll() is None

    def send(self, number, group=False):
        if self.alive():
            (os.killpg if group else os.kill)(self.pid, number)

    def stop(self, number=signal.SIGTERM, seconds=20, group=False):
        """Signals it and waits; SIGKILL when it does not end in time. True if it ended by itself."""
        self.send(number, group)
        try:
            self.child.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL, group)
            self.child.wait(10)
            return False

    def tail(self, lines=25):
        with open(self.log, errors='replace') as stream:
            return ''.join(stream.readlines()[-lines:])


class Stack:
    """etcd, Redis, PostgreSQL, a registry, the manager and the agent. `up()` starts all but the agent."""

    def __init__(self, folder, logs, manager_venv, agent_binary, engine):
        self.folder, self.logs, self.agent_binary = folder, logs, agent_binary
        self.python = os.path.join(manager_venv, 'bin', 'python')
        (self.etcd_port, self.etcd_peer_port, self.redis_port, self.pg_port, self.registry_port, self.api_port,
         self.event_port, self.agent_port) = free_ports(8)
        self.pool_first = free_range(100)
        self.registry_url = 'http://127.0.0.1:{}'.format(self.registry_port)
        self.api_url = 'http://127.0.0.1:{}'.format(self.api_port)
        self.services, self.manager, self.agent = [], None, None
        self.pg_user = None if os.geteuid() else 'postgres'
        self.pg_bin = sorted(glob.glob('/usr/lib/postgresql/*/bin'))[-1]
        self.env = dict(
            PATH=os.environ['PATH'], HOME=self.path('home'), LC_ALL='C.UTF-8', LANG='C.UTF-8',
            BACKEND_NAMESPACE='local',
            BACKEND_ETCD_ADDR='127.0.0.1:{}'.format(self.etcd_port),
            BACKEND_REDIS_ADDR='127.0.0.1:{}'.format(self.redis_port),
            BACKEND_DB_ADDR='127.0.0.1:{}'.format(self.pg_port),
            BACKEND_DB_NAME='backend', BACKEND_DB_USER='postgres', BACKEND_DB_PASSWORD='develove')
        for name in ('home', 'redis', 'registry', 'pg', 'etcd', 'scratch', 'state', 'run', 'vfroot/local'):
            os.makedirs(self.path(name))
        os.chmod(folder, 0o711)
        self.engine = engine(self)
        self.before, self.agent_venv = None, None
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def log(self, name):
        return os.path.join(self.logs, name + '.log')

    def _service(self, name, argv, user=None):
        process = Process(name, argv, self.log(name), self.env, user)
        self.services.append(process)
        return process

    def _ready(self, process, seconds, probe):
        try:
            wait_for('{} is up'.format(process.name), seconds, probe)
        except StackError as error:
            raise StackError('{}\n{}'.format(error, process.tail()))

    def start_services(self):
        """Starts the four services and waits until each answers."""
        etcd_url = 'http://127.0.0.1:{}'.format(self.etcd_port)
        peer_url = 'http://127.0.0.1:{}'.format(self.etcd_peer_port)
        etcd = self._service('etcd', [
            'etcd', '--data-dir', self.path('etcd'), '--unsafe-no-fsync', '--listen-client-urls', etcd_url,
            '--advertise-client-urls', etcd_url, '--listen-peer-urls', peer_url,
            '--initial-advertise-peer-urls', peer_url, '--initial-cluster', 'default=' + peer_url])
        redis = self._service('redis', [
            'redis-server', '--bind', '127.0.0.1', '--port', str(self.redis_port), '--dir', self.path('redis'),
            '--save', '', '--appendonly', 'no'])
        config = self.path('registry.yml')
        with open(config, 'w') as stream:
            json.dump({'version': 0.1, 'log': {'level': 'warn'},
                       'storage': {'filesystem': {'rootdirectory': self.path('registry')}, 'delete': {'enabled': True}},
                       'http': {'addr': '127.0.0.1:{}'.format(self.registry_port)}}, stream)
        docker_registry = self._service('registry', ['docker-registry', 'serve', config])
        postgres = self._postgres()
        self._ready(etcd, 30, lambda: urllib.request.urlopen(etcd_url + '/health', timeout=2).read())
        self._ready(redis, 30, lambda: self.redis('ping') == 'PONG')
        self._ready(docker_registry, 30, lambda: urllib.request.urlopen(self.registry_url + '/v2/', timeout=2))
        self._ready(postgres, 60, lambda: self.sql('select 1', database='postgres') == '1')

    def start_engine(self, *options):
        """Starts the engine's daemon. What the machine holds from then on without an agent is nobody's residue."""
        self.engine.start(*options)
        self.before = residue.Before(self)

    def _postgres(self):
        data = self.path('pg', 'data')
        if self.pg_user:
            shutil.chown(self.path('pg'), self.pg_user)
        initdb = Process('initdb', [
            os.path.join(self.pg_bin, 'initdb'), '-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '-N'],
            self.log('initdb'), self.env, self.pg_user)
        if initdb.child.wait(120) != 0:
            raise StackError('initdb failed:\n' + initdb.tail())
        # md5 password encryption: the manager's driver of 2019 knows no SCRAM
        return self._service('postgres', [
            os.path.join(self.pg_bin, 'postgres'), '-D', data, '-p', str(self.pg_port), '-k', self.path('pg'),
            '-h', '127.0.0.1', '-c', 'fsync=off', '-c', 'password_encryption=md5'], self.pg_user)

    def redis(self, *words, db=0):
        return subprocess.check_output(
            ['redis-cli', '-h', '127.0.0.1', '-p', str(self.redis_port), '-n', str(db)] + list(words),
            stderr=subprocess.DEVNULL, timeout=10).decode().strip()

    def sql(self, statement, database='backend'):
        """Runs one statement; the answer is psql's unaligned text."""
        return subprocess.check_output(
            [os.path.join(self.pg_bin, 'psql'), '-h', '127.0.0.1', '-p', str(self.pg_port), '-U', 'postgres',
             '-d', database, '-qtAc', statement], stderr=subprocess.DEVNULL, env=self.env, timeout=20).decode().strip()

    def manager_cli(self, *words):
        """Runs one command of the manager's own command line."""
        done = subprocess.run([self.python, '-m', 'ai.backend.manager.cli'] + list(words), env=self.env, cwd='/',
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        with open(self.log('manager-cli'), 'ab') as stream:
            stream.write(done.stdout)
        if done.returncode:
            raise StackError('manager command {} failed:\n{}'.format(words, done.stdout.decode(errors='replace')[-2000:]))

    def fill(self):
        """Tables, fixtures and the keys in etcd that the manager and the agent want."""
        self.sql('create database backend', database='postgres')
        url = 'postgres://postgres:develove@127.0.0.1:{}/backend'.format(self.pg_port)
        subprocess.run([self.python, os.path.join(HERE, 'create_tables.py'), url], env=self.env, cwd='/', check=True,
                       timeout=120, stdout=subprocess.DEVNULL)
        self.manager_cli('fixture', 'populate', os.path.join(HERE, 'fixtures.json'))
        for key, value in (
                ('config/docker/registry/127.0.0.1%3A{}'.format(self.registry_port), self.registry_url),
                ('volumes/_mount', self.path('vfroot')), ('volumes/_default_host', 'local'), ('volumes/_fsprefix', ''),
                ('manager/status', 'running'), ('config/api/allow-origins', '*')):
            self.manager_cli('etcd', 'put', key, value)

    def push(self, description, tar):
        """Pushes an image; returns its full name and its manifest's digest."""
        digest = registry.push(self.registry_url, description, tar, self.folder)
        return '127.0.0.1:{}/{}:{}'.format(self.registry_port, description['name'], description['tag']), digest

    def start_manager(self):
        """Starts the manager. Its default heartbeat time limit, 5 s, is short for a busy machine of two cores."""
        self.manager = Process('manager', [
            self.python, '-m', 'ai.backend.gateway.server', '--service-ip', '127.0.0.1', '--service-port', str(self.api_port),
            '--events-port', str(self.event_port), '--agent-port', str(self.agent_port),
            '--advertised-manager-host', '127.0.0.1', '--num-proc', '1', '--heartbeat-timeout', '15'],
            self.log('manager'), self.env)
        self._ready(self.manager, 60, lambda: urllib.request.urlopen(self.api_url + '/', timeout=2).read())

    def kill_manager(self):
        self.manager.stop(signal.SIGKILL, group=True)

    def agent_argv(self):
        return [self.agent_binary, 'serve', '--namespace', 'local',
                '--etcd-addr', '127.0.0.1:{}'.format(self.etcd_port),
                '--agent-host-override', '127.0.0.1', '--kernel-host-override', '127.0.0.1', '--agent-port', str(self.agent_port),
                '--container-port-range', '{}-{}'.format(self.pool_first, self.pool_first + 99),
                '--scratch-root', self.path('scratch'), '--kernel-uid', '1000',
                '--state-dir', self.path('state'), '--run-dir', self.path('run')] + self.engine.agent_options()

    def start_agent(self):
        """Starts the agent under test; its own test of readiness is the manager's view of it."""
        env = {'PATH': os.environ['PATH'], 'HOME': self.path('home'), 'LC_ALL': 'C.UTF-8', 'RUST_BACKTRACE': '1'}
        self.agent = Process('agent', self.agent_argv(), self.log('agent'), env, die_with_us=False)

    def start_python_agent(self):
        """Starts the agent of 2019 in the place of the one under test."""
        env = dict(self.env, BACKEND_REGION='local', DOCKER_HOST=self.engine.endpoint())
        self.agent = Process('python-agent', [
            os.path.join(self.agent_venv, 'bin', 'python'), '-m', 'ai.backend.agent.server',
            '--agent-host-override', '127.0.0.1', '--agent-port', str(self.agent_port), '--kernel-uid', '1000',
            '--container-port-range', '{}-{}'.format(self.pool_first, self.pool_first + 99),
            '--scratch-root', self.path('scratch')], self.log('python-agent'), env, die_with_us=False)

    def stop_agent(self, number, seconds=30):
        """Signals the agent and waits for its end; True if it ended by itself."""
        return self.agent.stop(number, seconds)

    def down(self):
        """Ends everything this program started, and what the agent left."""
        if self.agent:
            self.agent.stop(signal.SIGTERM, 20)
        if self.manager:
            self.manager.stop(signal.SIGINT, 15, group=True)
        self.engine.down()
        for process in reversed(self.services):
            process.stop(signal.SIGINT if process.name == 'postgres' else signal.SIGTERM, 10)
        for _ in range(50):
            left = descendants()
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            reap()
            time.sleep(0.1)


def reap():
    """Collects orphans that this program, their subreaper, inherited."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(root=None):
    """All living processes below `root` (this program), zombies left out: {pid: command line}."""
    parents, commands = {}, {}
    for stat in glob.glob('/proc/[0-9]*/stat'):
        try:
            with open(stat) as stream:
                head, _, rest = stream.read().rpartition(')')
            with open(os.path.join(os.path.dirname(stat), 'cmdline'), 'rb') as stream:
                command = stream.read().replace(b'\0', b' ').decode(errors='replace').strip()
        except OSError:
            continue
        pid, name = head.split(' (', 1)
        state, parent = rest.split()[:2]
        parents[int(pid)] = int(parent)
        if state not in 'ZX':
            commands[int(pid)] = command or name
    root = root or os.getpid()

    def below(pid):
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root
    return {pid: command for pid, command in commands.items() if pid != root and below(pid)}

