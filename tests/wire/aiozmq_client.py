"""Calls the agent as the 19.03 manager does, with its RPC library, and prints what comes back."""
import asyncio
import sys
import time

import aiozmq.rpc

CONFIG = {
    'image': {'registry': {'name': 'r'}, 'canonical': 'r/i:t', 'digest': 'd', 'labels': {}},
    'resource_slots': {'cpu': '1E+1'},
    'idle_timeout': 0,
    'mounts': [['n', 'local', '0a', 'wd']],
    'environ': {},
}


async def main(port):
    table = {'concurrent.futures._base.TimeoutError': asyncio.TimeoutError}
    client = await aiozmq.rpc.connect_rpc(connect='tcp://127.0.0.1:' + port, error_table=table)
    call = client.call

    async def show(label, answer):
        try:
            print(label, repr(await answer))
        except Exception as error:
            print(label, type(error).__qualname__, error.args)

    def run(kernel, run_id=None):
        return call.execute(3, kernel, run_id, 'query', 'print(1)', {}, 2.0)

    await show('ping', call.ping('hello'))
    await show('number', call.ping(5))
    await show('execute', run('kid'))
    await show('cancelled', run('cancelled'))
    await show('empty run', run('kid', ''))
    await show('unknown', call.get_logs('unknown'))
    await show('arity', call.get_logs(1, 2))
    await show('create', call.create_kernel('k', CONFIG))
    await show('restart', call.restart_kernel('k', CONFIG))
    await show('late', call.list_files('k', 'x'))
    await show('download', call.download_file('k', 'x'))
    await show('upload', call.upload_file('k', 'x', b'\0\xff'))
    await show('missing', call.hello())
    slow = asyncio.ensure_future(call.get_logs('slow'))
    await show('meanwhile', call.ping('x'))
    print('slow is', 'done' if slow.done() else 'pending')
    await show('open the gate', call.refresh_idle('slow'))
    await show('slow', slow)
    big = 'x' * (20 << 20)
    print('big', await call.ping(big) == big)
    client.close()
    await client.wait_closed()


asyncio.get_event_loop().run_until_complete(main(sys.argv[1]))
