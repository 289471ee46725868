import os, struct
def read(size):
    data = b''
    while len(data) < size:
        part = os.read(3, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data
exec(compile(read(struct.unpack('>I', read(4))[0]), '<krunner>', 'exec'), {'__name__': '__krunner__'})
