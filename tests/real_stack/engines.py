"""The container engines below the agent: their daemons, what the agent is told of them, and what may be left in them."""
import contextlib
import os
import signal
import socket
import subprocess

import stack

DAEMONS = os.path.join(stack.REPOSITORY, 'tests', 'daemons')


def output(*argv):
    """What a program prints, as words; nothing when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    return done.stdout.decode().split() if done.returncode == 0 else []


class Youki:
    """No daemon: the agent is the engine."""
    name, daemon = 'youki', None

    def __init__(self, running):
        self.running = running

    def start(self, *options):
        pass

    def agent_options(self):
        return ['--runtime', self.name]

    def pids(self):
        return []

    def leftovers(self):
        return []

    def down(self):
        pass


class Daemon(Youki):
    """An engine with a daemon of its own below the stack's folder."""
    program = None

    def __init__(self, running):
        super().__init__(running)
        # the folder's name becomes a cgroup's, beside those of other runs
        self.folder = running.path('{}-{}'.format(self.program, os.path.basename(running.folder).split('.')[-1]))
        self.socket = os.path.join(self.folder, self.name + '.sock')

    def start(self, *options):
        """Starts the daemon and waits until it serves; one that was killed is followed by a new one on the same folder."""
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        argv = [os.path.join(DAEMONS, self.program + '.sh'), self.folder] + list(options)
        self.daemon = stack.Process(self.program, argv, self.running.log(self.program), dict(os.environ))
        stack.wait_for('{} serves\n{}'.format(self.program, self.daemon.tail(5)), 60, self._serves)

    def _serves(self):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.socket)
        return True

    def stop(self):
        """Ends it in peace."""
        self.daemon.stop(signal.SIGTERM, 30)

    def kill(self):
        self.daemon.stop(signal.SIGKILL)

    def freeze(self):
        self.daemon.send(signal.SIGSTOP)

    def thaw(self):
        self.daemon.send(signal.SIGCONT)

    def agent_options(self):
        return ['--runtime', self.name, '--runtime-endpoint', self.endpoint()]

    def endpoint(self):
        return self.socket

    def pids(self):
        return [self.daemon.pid] if self.daemon else []

    def down(self):
        """Ends it and removes all that it made, containers too."""
        if self.daemon:
            self.thaw()
            self.kill()
        subprocess.run([os.path.join(DAEMONS, 'sweep.sh'), self.folder])


class Docker(Daemon):
    """dockerd with the containerd that it starts."""
    name, program = 'docker', 'dockerd'

    def endpoint(self):
        return 'unix://' + self.socket

    def _serves(self):
        # it listens before it is ready
        return self.cli('version', '--format', '{{.Server.Version}}')

    def cli(self, *words):
        return output('docker', '-H', self.endpoint(), *words)

    def import_krunner_env(self, tar):
        """Gives it the env images of the Python agent of 2019, one for each family of distributions."""
        name = 'lablup/backendai-krunner-env:19.03.3-'
        for distribution in ('ubuntu16.04', 'alpine3.8'):
            if not self.cli('import', '--change', 'VOLUME /opt/backend.ai', '--change', 'CMD ["/opt/backend.ai/bin/python"]', tar,
                            name + distribution):
                raise stack.StackError('docker cannot import ' + tar)

    def pids(self):
        try:
            with open(os.path.join(self.folder, 'exec', 'containerd', 'containerd.pid')) as stream:
                return super().pids() + [int(stream.read())]
        except OSError:
            return super().pids()

    def kill(self):
        """Its containerd dies with it; while nobody collects that one, the next dockerd takes it for alive."""
        children = self.pids()[1:]
        super().kill()
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def leftovers(self):
        left = ['docker container ' + name for name in self.cli('ps', '--all', '--format', '{{.Names}}')]
        left += ['docker volume ' + name for name in self.cli('volume', 'ls', '--quiet')]
        left += ['docker network ' + name for name in self.cli('network', 'ls', '--filter', 'type=custom', '--quiet')]
        layers = os.path.join(self.folder, 'data', 'image', 'overlay2', 'layerdb', 'mounts')
        left += ['layer of container ' + name for name in (os.listdir(layers) if os.path.isdir(layers) else [])]
        left += ['process ' + command for command in stack.descendants(self.daemon.pid).values() if 'docker-proxy' in command]
        return left


class Containerd(Daemon):
    """containerd alone."""
    name, program = 'containerd', 'containerd'

    def ctr(self, *words):
        return output('ctr', '--address', self.socket, *words)

    def leftovers(self):
        left = []
        for namespace in self.ctr('namespaces', 'list', '--quiet'):
            for kind in ('containers', 'tasks', 'leases'):
                left += ['containerd {} {}'.format(kind, name) for name in self.ctr('-n', namespace, kind, 'list', '--quiet')]
            active = self.ctr('-n', namespace, 'content', 'active')
            left += ['containerd content ' + name for name in active if name.startswith(('sha256:', 'layer-', 'manifest-'))]
            left += ['containerd snapshot ' + name for name in self._active_snapshots(namespace)]
        shims = os.path.join(self.folder, 'state', 'io.containerd.runtime.v2.task')
        left += ['shim folder ' + os.path.join(base, name) for base, names, _ in os.walk(shims) for name in names if base != shims]
        return left

    def _active_snapshots(self, namespace):
        done = subprocess.run(['ctr', '--address', self.socket, '-n', namespace, 'snapshots', 'list'], stdout=subprocess.PIPE)
        rows = [line.split() for line in done.stdout.decode().splitlines()[1:]]
        return [row[0] for row in rows if row[-1] != 'Committed']


ENGINES = {engine.name: engine for engine in (Youki, Docker, Containerd)}
