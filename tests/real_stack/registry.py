"""Pushes kernel images into a Docker registry (API v2, image manifest schema 2) without Docker.

The 19.03 manager asks for exactly this manifest type and reads the labels from "container_config" of the image's configuration, a
field that Docker of 2019 wrote; other readers take "config".
"""
import datetime
import gzip
import hashlib
import json
import os
import shutil
import urllib.parse
import urllib.request

MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json'
CONFIG = 'application/vnd.docker.container.image.v1+json'
LAYER = 'application/vnd.docker.image.rootfs.diff.tar.gzip'


def _request(method, url, data=None, headers=None):
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
    return urllib.request.urlopen(request, timeout=120)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return 'sha256:' + digest.hexdigest()


def _put_blob(base, name, digest, data, size):
    """Uploads a blob in one piece; `data` is bytes or an open file."""
    with _request('POST', '{}/v2/{}/blobs/uploads/'.format(base, name), b'') as answer:
        location = urllib.parse.urljoin(base, answer.headers['Location'])
    location += ('&' if '?' in location else '?') + urllib.parse.urlencode({'digest': digest})
    _request('PUT', location, data, {'Content-Type': 'application/octet-stream', 'Content-Length': str(size)}).close()


def _configuration(description, diff_id):
    inner = {
        'Labels': description['labels'],
        'Env': ['{}={}'.format(*item) for item in description['env'].items()],
        'Cmd': description['cmd'],
        'WorkingDir': '/home/work',
    }
    return json.dumps({
        'architecture': 'amd64' if os.uname().machine == 'x86_64' else 'arm64',
        'os': 'linux',
        'created': datetime.datetime(2026, 1, 1).isoformat() + 'Z',
        'config': inner,
        'container_config': inner,
        'rootfs': {'type': 'layers', 'diff_ids': [diff_id]},
        'history': [{'created_by': 'root file system'}],
    }).encode()


def push(base, description, tar, work):
    """Pushes the root file system `tar` with the labels of `description` (an image.json); returns the manifest's digest."""
    layer = os.path.join(work, os.path.basename(tar) + '.gz')
    with open(tar, 'rb') as source, gzip.GzipFile(layer, 'wb', compresslevel=1, mtime=0) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    layer_digest, layer_size = _sha256(layer), os.path.getsize(layer)
    configuration = _configuration(description, _sha256(tar))
    configuration_digest = 'sha256:' + hashlib.sha256(configuration).hexdigest()
    with open(layer, 'rb') as stream:
        _put_blob(base, description['name'], layer_digest, stream, layer_size)
    os.unlink(layer)
    _put_blob(base, description['name'], configuration_digest, configuration, len(configuration))
    manifest = json.dumps({
        'schemaVersion': 2,
        'mediaType': MANIFEST,
        'config': {'mediaType': CONFIG, 'size': len(configuration), 'digest': configuration_digest},
        'layers': [{'mediaType': LAYER, 'size': layer_size, 'digest': layer_digest}],
    }).encode()
    url = '{}/v2/{}/manifests/{}'.format(base, description['name'], description['tag'])
    with _request('PUT', url, manifest, {'Content-Type': MANIFEST}) as answer:
        return answer.headers['Docker-Content-Digest']


def forget(base, name, digest):
    """Removes a manifest, so that a pull of it fails from now on."""
    _request('DELETE', '{}/v2/{}/manifests/{}'.format(base, name, digest)).close()
