"""What an agent may leave on a machine, looked for in the kernel's own tables: processes, mounts, cgroups, namespaces, links, rules."""
import glob
import json
import os
import re
import subprocess
import time

import stack


def processes(running):
    """The agent's descendants and the orphans it left: all of this program's that are not services of the stack."""
    known = {process.pid for process in running.services + [running.manager, running.agent] if process} | set(running.engine.pids())
    with_children = set(known)
    for pid in known - {running.agent.pid if running.agent else 0}:
        with_children |= set(stack.descendants(pid))
    # The agent of 2019 leaves helpers behind, named so, when its kernels stay.
    return sorted(command for pid, command in stack.descendants().items()
                  if pid not in with_children and not command.startswith('backend.ai: '))


def mounts(running):
    with open('/proc/self/mountinfo') as stream:
        return [line.split()[4] for line in stream if running.folder in line]


class Before:
    """The machine before the agent: what the daemon of an engine made by its start is not the agent's."""

    def __init__(self, running):
        self.mounts, self.network = mounts(running), network_snapshot()


def cgroups(ids):
    """Control groups named after a kernel or a container, in any hierarchy."""
    found = []
    for base, folders, _ in os.walk('/sys/fs/cgroup'):
        found += [os.path.join(base, name) for name in folders if any(item in name for item in ids)]
    return found


def _json(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.decode() or '[]') if done.returncode == 0 else []


def network_snapshot():
    """Names of links and of named network namespaces, and every table, chain, set and rule."""
    links = {'link ' + item['ifname'] for item in _json('ip', '-j', 'link') if 'ifname' in item}
    spaces = {'netns ' + os.path.basename(path) for path in glob.glob('/run/netns/*')}
    rules = set()
    listed = _json('nft', '-j', 'list', 'ruleset')
    for item in listed.get('nftables', []) if listed else []:
        kind, value = next(iter(item.items()))
        if kind != 'metainfo':
            value.pop('handle', None)
            if 'expr' in value:
                value['expr'] = [part for part in value['expr'] if 'counter' not in part]
            rules.add('nft {} {}'.format(kind, json.dumps(value, sort_keys=True)))
    return links | spaces | rules


def memory_limit(pid):
    """The limit in bytes of the memory group that holds a process, on cgroup v1 and v2."""
    with open('/proc/{}/cgroup'.format(pid)) as stream:
        groups = [line.strip().split(':', 2) for line in stream]
    for _, controllers, path in groups:
        if 'memory' in controllers.split(','):
            with open('/sys/fs/cgroup/memory{}/memory.limit_in_bytes'.format(path)) as stream:
                return int(stream.read())
    path = '/sys/fs/cgroup' + [path for _, controllers, path in groups if not controllers][0]
    limits = []
    while path != '/sys/fs/cgroup':
        with open(os.path.join(path, 'memory.max')) as stream:
            text = stream.read().strip()
        limits += [int(text)] if text != 'max' else []
        path = os.path.dirname(path)
    return min(limits)


def look(running):
    """Everything that is left, one text for each thing; empty when nothing is."""
    ids = re.findall(r'\b(?:[0-9a-f-]{36}|[0-9a-f]{64})\b', running.sql('select id, container_id from kernels'))
    left = ['process ' + command for command in processes(running)]
    left += ['mount ' + path for path in mounts(running) if path not in running.before.mounts]
    left += ['cgroup ' + path for path in cgroups(ids)]
    left += sorted(network_snapshot() - running.before.network)
    for name in ('scratch', 'run', 'state'):
        left += ['{} {}'.format(name, path) for base, folders, _ in os.walk(running.path(name))
                 for path in (os.path.join(base, folder) for folder in folders) if any(item in os.path.basename(path) for item in ids)]
    left += ['file in scratch ' + name for name in os.listdir(running.path('scratch'))]
    return left + running.engine.leftovers()


def wait_for_nothing(running, seconds):
    """Looks until nothing is left or the time is over; returns what is left."""
    end = time.monotonic() + seconds
    while True:
        left = look(running)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.3)
